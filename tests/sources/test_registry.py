"""Every source implements the protocol, and a recipe gets the source that it declares."""

import inspect
import json

import numpy as np
import pytest
from etils import epath

from configs import e2e, sandbox
from instructjax import records
from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError
from instructjax.recipe import check
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.sandbox.quality import quality
from instructjax.sources import registry
from instructjax.sources.e2e import E2E
from instructjax.sources.files import Files
from instructjax.sources.final_answers import FinalAnswers
from instructjax.sources.sandbox import HELDOUT_RANKINGS, REWARD_PROMPTS, Sandbox
from instructjax.sources.source import SPLITS, Answers, Judgement, Source
from tests.recipes import changed, recipe

METHODS = [name for name, value in vars(Source).items() if inspect.isfunction(value) and not name.startswith("_")]


def small_sandbox(**changes):
    sizes = dict(documents=60, demonstrations=60, users=40, reward_prompts=80, prompts=60, validation_prompts=4)
    sizes = {f"sandbox__{name}": size for name, size in sizes.items()}
    return changed(sandbox.get_config("smoke"), **sizes, comparisons__prompts=12, **changes)


def test_the_recipes_section_decides(tmp_path):
    for config, kind in ((recipe(tmp_path), Files), (small_sandbox(), Sandbox), (e2e.get_config(), E2E)):
        assert type(registry.make_source(config)) is kind


def test_a_recipe_may_declare_exactly_the_sources():
    assert tuple(registry.SOURCES) == check.SOURCES


@pytest.mark.parametrize("kind", registry.SOURCES.values())
def test_every_source_has_the_methods_of_the_protocol(kind):
    assert METHODS == ["write", "files", "collect_rankings", "measure", "judge"]
    for name in METHODS:
        found, expected = (list(inspect.signature(getattr(owner, name)).parameters) for owner in (kind, Source))
        assert found == expected, name
    for record, splits in kind.splits.items():  # the stages need these splits
        assert set(SPLITS[record]) <= set(splits)
    # The records of files and problems are asked for by the stages that need them.
    assert kind.splits.keys() == (set() if kind is Files or issubclass(kind, FinalAnswers) else SPLITS.keys())


class TestFiles:
    @pytest.fixture
    def source(self, tmp_path):
        return registry.make_source(changed(recipe(tmp_path), files__text="a.jsonl,b.jsonl.gz"))

    def test_the_files_are_those_that_the_recipe_names(self, source, tmp_path):
        folder = epath.Path(tmp_path / "data")
        source.write(folder)
        assert not folder.exists()
        assert source.files(Text, folder) == [epath.Path("a.jsonl"), epath.Path("b.jsonl.gz")]
        assert source.files(Ranking, folder) == [epath.Path(tmp_path / "rankings.jsonl")]

    def test_there_are_no_labelers(self, source, tmp_path):
        with pytest.raises(DataError, match="^files.rankings: expected rankings among the records, found none"):
            source.collect_rankings(epath.Path(tmp_path), None)
        assert source.measure(["the fox"], ["an owl"]) == {}
        answers = Answers(["a"], {"sft": ["b"]}, ["c"], load=None, rewards=None, folder=epath.Path(tmp_path))
        assert source.judge(answers) == Judgement({}, {})


class TestSandbox:
    @pytest.fixture
    def written(self, tmp_path):
        """Returns (source, the folder that it wrote to)."""
        source, folder = registry.make_source(small_sandbox()), epath.Path(tmp_path)
        source.write(folder)
        return source, folder

    @staticmethod
    def sample(prompts, seed):
        """Yields three answers to each prompt: the prompt itself and two others."""
        for record in prompts:
            yield record.prompt, [record.prompt, "the fox is red .", "i do not know ."]

    def test_rankings_are_not_written_with_the_other_records(self, written):
        source, folder = written
        assert [source.files(kind, folder) for kind in prepared.SET_NAMES] == [
            [folder / "text.jsonl"],
            [folder / "demonstrations.jsonl"],
            [folder / "prompts.jsonl"],
            [],
        ]
        for kind in (Text, Demonstration, Prompt):
            (path,) = source.files(kind, folder)
            assert {record.split for record in records.read(path, kind)} >= set(SPLITS[kind])

    def test_the_records_depend_only_on_the_recipe_and_its_seed(self, written, tmp_path_factory):
        _, folder = written
        for seed, same in ((0, True), (1, False)):
            other = epath.Path(tmp_path_factory.mktemp("other"))
            registry.make_source(small_sandbox(seed=seed)).write(other)
            for name in ("text.jsonl", "demonstrations.jsonl", "prompts.jsonl", REWARD_PROMPTS):
                assert ((folder / name).read_text() == (other / name).read_text()) == same

    def test_both_groups_of_labelers_rank_validation_prompts(self, written):
        source, folder = written
        rankings, heldout = source.collect_rankings(folder, self.sample)
        prompts = {record.prompt: record for record in records.read(folder / REWARD_PROMPTS, Prompt)}
        asked = [ranking for ranking in rankings if ranking.split == "train"]
        assert 0 < len(asked) <= 12
        for ranking in (*rankings, *heldout):
            record = prompts[ranking.prompt]
            assert (ranking.user, ranking.split, ranking.source) == (record.user, record.split, "sft")
        assert {ranking.split for ranking in heldout} == {"validation"}
        assert not {ranking.labeler for ranking in rankings} & {ranking.labeler for ranking in heldout}
        per_prompt = [ranking.prompt for ranking in heldout]
        assert max(per_prompt.count(prompt) for prompt in per_prompt) > 1  # to measure their agreement

    def test_each_round_has_training_prompts_of_its_own(self, written):
        source, folder = written
        drawn = [one.prompt for one in records.read(folder / REWARD_PROMPTS, Prompt) if one.split == "train"]
        asked = []

        def sample(prompts, seed):
            asked.append([record.prompt for record in prompts])
            return self.sample(prompts, seed)

        changes = {"comparisons__stages": ("../1/ppo", "sft"), "comparisons__skip": 12}
        later = registry.make_source(small_sandbox(**changes))
        found = [one.collect_rankings(folder, sample) for one in (source, later)]
        assert [asked[0], asked[2]] == [drawn[:12], drawn[12:24]]
        assert asked[1] == asked[3]  # validation prompts
        assert {ranking.source for part in found[1] for ranking in part} == {"ppo+sft"}
        assert found[0][1] != found[1][1]  # each round has noise of its own
        last = registry.make_source(small_sandbox(comparisons__skip=len(drawn) - 11))
        with pytest.raises(DataError, match=r"expected comparisons.prompts = 12 training prompts .*, found 11$"):
            last.collect_rankings(folder, sample)

    def test_it_measures_true_quality(self, written):
        source, folder = written
        prompts = [record.prompt for record in records.read(folder / "prompts.jsonl", Prompt)][:6]
        texts = ["the fox is red ."] * len(prompts)
        found = source.measure(prompts, texts)
        expected = np.mean([quality(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
        assert found == {"true_quality": pytest.approx(expected)}

    def test_it_judges_every_model_and_the_reward_model(self, written):
        source, folder = written
        rankings, heldout = source.collect_rankings(folder, self.sample)
        records.write(folder / HELDOUT_RANKINGS, heldout)
        validation = [ranking for ranking in rankings if ranking.split == "validation"]
        prompts = [record.prompt for record in records.read(folder / "prompts.jsonl", Prompt)][:6]
        texts = {"sft": ["the fox is red ."] * 6, "guest": ["i do not know ."] * 6}

        def load(kind, split):
            assert (kind, split) == (Ranking, "validation")
            return validation

        def rewards(asked):  # the scores of its labeler
            return [np.array(ranking.scores, np.float64) for ranking in asked]

        judgement = source.judge(Answers(prompts, texts, texts["sft"], load, rewards, folder))
        assert judgement.models.keys() == texts.keys()
        for found in judgement.models.values():
            assert {"true_quality", "win_rate_vs_sft", "likert", "metadata"} <= found.keys()
            assert found["win_rate_vs_sft"].keys() == {"training", "heldout"}
        # Compared with the same answers, all comparisons tie.
        assert judgement.models["sft"]["win_rate_vs_sft"]["training"]["mean"] == 0.5
        assert judgement.results["reward_model"]["accuracy"] == {"training_labelers": 1.0, "heldout_labelers": 1.0}
        json.dumps([judgement.models, judgement.results])  # they are copied into results.json


class TestE2E:
    def test_it_needs_a_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="^e2e.directory: expected the folder of all data sets, found none"):
            registry.make_source(changed(e2e.get_config(), e2e__directory="")).write(epath.Path(tmp_path))

    def test_there_are_no_labelers(self, tmp_path):
        source = registry.make_source(e2e.get_config())
        with pytest.raises(DataError, match="^e2e: expected rankings among the records, found none"):
            source.collect_rankings(epath.Path(tmp_path), None)
        assert source.measure(["name[Aromi]"], ["a place"]) == {}

    def test_it_counts_facts_and_measures_the_reward_model_on_held_out_rankings(self, tmp_path):
        def prompt(i):
            return f"name[Aromi], food[French], area[place {i}]"

        def ranking(i, rater, split):
            scored = {"responses": ("a", "b c"), "scores": (0.0, 1.0), "labeler": f"quality-{rater}"}
            return Ranking(prompt=prompt(i), **scored, split=split, extra={"item": i, "aspect": "quality"})

        prompts = [prompt(i) for i in range(4, 8)]
        loaded = {
            (Ranking, "train"): [ranking(i, 0, "train") for i in range(4)],
            (Ranking, "test"): [ranking(i, rater, "test") for i in range(4, 8) for rater in (0, 1)],
            (Demonstration, "test"): [Demonstration(prompt=p, response="Aromi serves French food.") for p in prompts],
        }
        judgement = registry.make_source(e2e.get_config()).judge(
            Answers(
                prompts,
                {"sft": ["nothing"] * 4, "ppo": ["Aromi serves French food."] * 4},
                ["nothing"] * 4,
                load=lambda kind, split: loaded[kind, split],
                rewards=lambda asked: [np.array([0.0, 1.0])] * len(asked),
                folder=epath.Path(tmp_path),
            )
        )
        assert judgement.models == {}
        found = judgement.results["human"]
        assert found["accuracy"]["single"]["reward_model"]["mean"] == 1.0
        stated = {model: estimate["mean"] for model, estimate in found["facts_stated"].items()}
        assert stated["sft"] < stated["ppo"] == stated["references"]
