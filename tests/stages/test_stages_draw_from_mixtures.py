"""Tests that every stage draws its records from the recipe's mixture, and that all stages run on one of real sets."""

import itertools
import json

import pytest

from instructjax import records
from instructjax.data import mixtures
from instructjax.recipe import declared
from instructjax.records import Ranking
from instructjax.stages import dpo, ppo, ppo_init, pretrain, reward, sft
from instructjax.stages.run import Run
from instructjax.stages.stage import Stage
from tests import local_data, recipes, scripts
from tests.local_data import DATA

DRAWN = {"left": 0.75, "right": 0.25}  # with three epochs of "left" for one of "right"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run with records of two sources in equal numbers, for documents of equal length."""
    folder = tmp_path_factory.mktemp("run")
    rows = {
        name: [
            json.dumps(record | {"source": ("left", "right")[i % 2], "split": "validation" if i % 10 > 7 else "train"})
            for i, record in enumerate(found)
        ]
        for name, found in recipes.RECORDS.items()
    }
    rows["text"] = [json.dumps({**json.loads(row), "text": f"the fox {i:03}"}) for i, row in enumerate(rows["text"])]
    config = recipes.changed(recipes.recipe(folder, **rows), mixture__epochs="left=3").unlock()
    config.dpo = declared.defaults(declared.SECTIONS["dpo"])
    return Run(config.lock(), folder / "run")


@pytest.mark.parametrize(
    ("stage", "kinds"),
    [(pretrain, 1), (sft, 1), (reward, 1), (dpo, 1), (ppo_init, 2), (ppo, 2)],
    ids=lambda found: getattr(found, "__name__", None),
)
def test_every_stage_draws_from_the_mixture(run, monkeypatch, stage, kinds):
    drawn, order = [], mixtures.order

    def spy(count, seed, mixture=None):
        drawn.append(mixture)
        return order(count, seed, mixture)

    monkeypatch.setattr(mixtures, "order", spy)
    monkeypatch.setattr(Stage, "train", lambda self, loss, start, batches, **_: next(iter(batches())))
    monkeypatch.setattr(Run, "checkpoints", lambda *_: None)
    monkeypatch.setattr(Run, "load_start", lambda *_: None)
    monkeypatch.setattr(reward.ranking_report, "write", lambda _: None)
    opened = Stage(run, stage.run.declaration)
    if stage is ppo:
        next(iter(ppo.prompt_batches(opened)()))
        next(iter(ppo._text(opened)))
    else:
        stage.run.function(opened)
    assert len(drawn) >= kinds
    assert all(mixture.shares == pytest.approx(DRAWN) for mixture in drawn)


SETS = {  # four sets of the local data, and the names of their fields
    "text": ["storybooks/storybooks.jsonl.gz"],
    "demonstrations": ["dolly_15k/dolly_15k.jsonl.gz", "oasst1_en/validation_demonstrations.jsonl.gz"],
    "rankings": ["gpt3_explanations_k5/rankings.jsonl.gz", "oasst1_en/validation_rankings.jsonl.gz"],
    "prompts": ["dolly_15k/dolly_15k.jsonl.gz", "oasst1_en/validation_demonstrations.jsonl.gz"],
}
COUNT = 400  # records of each


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=local_data.ABSENT)
def test_all_stages_run_on_a_mixture_of_four_sets(tmp_path):
    flags = ["--config.data.max_prompt=200", "--config.data.max_response=200", "--config.mixture.temperature=2.0"]
    flags += ["--config.mixture.epochs=oasst1_en=2", "--config.evaluate.few_shot=1", "--config.files.fields=user=tree"]
    for kind, sources in SETS.items():
        paths = []
        for source in sources:
            path = tmp_path / f"{source.partition('/')[0]}_{kind}.jsonl"
            lines = itertools.islice(records.read_lines(DATA / source, Ranking), COUNT)
            rows = [json.loads(line) | {"source": source.partition("/")[0]} for _, line in lines]
            for row in rows:
                row.pop("split", None)  # gpt3_explanations_k5 has no validation split
                if kind == "text":
                    row["text"] = row["text"][:2000]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            paths.append(str(path))
        flags.append(f"--config.files.{kind}={','.join(paths)}")
    workdir = tmp_path / "run"
    scripts.run("reproduce.py", "--config=configs/own.py:tiny", f"--workdir={workdir}", *flags)
    for stage in ("sft", "reward", "ppo_init", "ppo", "ppo_ptx"):
        assert (workdir / stage / "summary.json").exists()
    found = json.loads((workdir / "results.json").read_text())["data"]
    assert {kind: set(found[kind]["train"]["sources"]) for kind in found} == {
        kind: {source.partition("/")[0] for source in sources} for kind, sources in SETS.items()
    }
    report = (workdir / "data" / "report.md").read_text()
    assert "| rankings | train | gpt3_explanations_k5 | " in report and "![lengths.png](lengths.png)" in report
