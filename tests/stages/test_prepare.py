"""Preparation: required splits, records that are too long, and no repeated work."""

import gzip
import json
import re

import pytest

from configs import e2e
from instructjax import warning_log
from instructjax.data import prepared
from instructjax.data.layouts import Layout, document_tokens
from instructjax.errors import ConfigError, DataError, InputError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.stages import prepare as prepare_stage
from instructjax.stages.run import Run
from instructjax.text.sentencepiece import SentencePieceTokenizer
from tests.recipes import RECORDS, changed, prepare, recipe

SPLITS = ("train", "validation", "test")
DISHES = [f"dish {i}" for i in range(40)]
LONG = "a fox " * 40
STAGES = ("pretrain", "sft", "reward", "select", "ppo_init", "ppo", "ppo_ptx", "evaluate")


def lines(name, splits=SPLITS, **long):
    """Returns records of a kind; in those with indices in `long`, this field is too long."""
    records = [{**record, "split": splits[i % len(splits)]} for i, record in enumerate(RECORDS[name])]
    for field, indices in long.items():
        for i in indices:
            records[i] = {**records[i], field: LONG}
    return [json.dumps(record) for record in records]


@pytest.mark.parametrize(
    ("name", "missing"),
    [("text", "validation"), ("demonstrations", "train"), ("prompts", "test"), ("rankings", "validation")],
)
def test_a_split_without_records_is_named(tmp_path, name, missing):
    splits = [split for split in SPLITS if split != missing]
    with pytest.raises(DataError) as error:
        Run(recipe(tmp_path, **{name: lines(name, splits)}), tmp_path / "run").require(*STAGES)
    kind = name.capitalize().removesuffix("s")
    sizes = ", ".join(f"{split} (30)" for split in splits)
    assert str(error.value) == (
        f"{tmp_path}/{name}.jsonl: expected {kind} records in the split {missing}, found only {sizes}; "
        f'add records with "split": "{missing}", or change data.validation or data.test'
    )


def test_texts_that_are_left_out_are_not_among_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(SentencePieceTokenizer, "lost", lambda self, text: "#" if "#" in text else "")
    texts = [{**record, "source": "ab"[i % 2]} for i, record in enumerate(RECORDS["text"])]
    texts = [{**one, "text": f"# {one['text']}"} if i % 5 == 0 else one for i, one in enumerate(texts)]
    config = recipe(tmp_path, text=[json.dumps({**one, "split": SPLITS[i % 2]}) for i, one in enumerate(texts)])
    run = Run(changed(config, data__strict=False), tmp_path / "run")
    for split in SPLITS[:2]:
        records, documents = run.records(Text, split), run.documents(split)
        assert 0 < len(records) == len(documents) < prepared.split_sizes(run.prepared_folder, "text")[split]
        for record, tokens in zip(records, documents, strict=True):
            assert tokens.tolist() == document_tokens(record, run.layout.tokenizer).tolist()


def test_human_rankings_need_a_test_split(tmp_path):
    """A run needs it at its end, for the accuracy and the facts of references, but reports its lack at the start."""
    mrs = [f"name[Aromi], food[{line}]" for line in DISHES]
    references = [{"prompt": f"Describe.\n\n{mr}", "mr": mr, "response": "A place."} for mr in mrs]
    ratings = [
        {**reference, "item": i, "rater": 0, "responses": ["a", "b"], "scores": [1, 0]}
        for i, reference in enumerate(references)
    ]
    texts = [{"text": line, "title": line} for line in DISHES]
    for file, rows in (
        ("e2e_human_rankings/dev_references", references),
        ("e2e_human_rankings/test_references", references),
        ("e2e_human_rankings/quality", ratings),
        ("storybooks/storybooks", texts),
    ):
        path = tmp_path / f"{file}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    config = changed(e2e.get_config(), e2e__directory=str(tmp_path), data__test=0.0)
    with pytest.raises(DataError, match="expected Demonstration records in the split test, found only train"):
        prepare(config, tmp_path / "run")


def test_records_that_are_too_long_are_left_out_and_counted_once(tmp_path, capsys, monkeypatch):
    config = recipe(
        tmp_path,
        demonstrations=lines("demonstrations", prompt=[0, 3], response=[1]),
        prompts=lines("prompts", prompt=[5]),
    )
    config = changed(config, data__strict=False)
    workdir = tmp_path / "run"
    prepare(config, workdir)
    assert capsys.readouterr().out.splitlines() == [
        "demonstrations, train: 2 of 20 records are left out (prompt over data.max_prompt: 2)",
        "demonstrations, validation: 1 of 20 records are left out (response over data.max_response: 1)",
        "prompts, test: 1 of 20 records are left out (prompt over data.max_prompt: 1)",
    ]
    train = Run(config, workdir).records(Demonstration, "train")
    assert [record.prompt for record in train] == [RECORDS["demonstrations"][i]["prompt"] for i in range(6, 60, 3)]
    assert len(Run(config, workdir).records(Prompt, "test")) == 19
    assert len(Run(config, workdir).records(Ranking, "train")) == 20

    def fail(*arguments):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Layout, "count_response", fail)
    prepare(config, workdir)
    assert not capsys.readouterr().out
    assert len(Run(config, workdir).records(Demonstration, "train")) == 18


def test_other_records_are_checked_again(tmp_path):
    config, workdir = recipe(tmp_path), tmp_path / "run"
    prepare(config, workdir)
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines("prompts", prompt=[4])) + "\n")
    with pytest.raises(DataError, match="prompts.jsonl:5: prompt: expected at most 16 tokens"):
        prepare(config, workdir)


def test_a_ranking_of_too_many_answers_is_named(tmp_path):
    config = recipe(tmp_path)
    config = changed(config, comparisons__min_answers=2, comparisons__max_answers=2)
    prepare(config, tmp_path / "run")
    three = json.dumps({"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3], "split": "train"})
    (tmp_path / "rankings.jsonl").write_text("\n".join([*lines("rankings"), three]) + "\n")
    with pytest.raises(DataError) as error:
        prepare(config, tmp_path / "run")
    assert str(error.value) == (
        f"{tmp_path}/rankings.jsonl:61: responses: expected at most 2 (comparisons.max_answers), found 3"
    )


def ranking(prompt, *answers):
    """Returns the line of a ranking of (response, score) in the training split."""
    responses, scores = zip(*answers, strict=True)
    return json.dumps({"prompt": prompt, "responses": responses, "scores": scores, "split": "train"})


NO_SIGNAL = [
    ranking("a", ("the fox", 1), ("the owl", 1)),
    ranking("b", ("the fox", 1), ("the fox", 2)),
    ranking("c", ("the fox", 1), (LONG, 2)),
    ranking(" ", ("the fox", 1), ("the owl", 2)),
    ranking(LONG, ("the fox", 1), ("the owl", 2)),
    ranking("d", ("the fox", 1)),
]
PARTLY = [
    ranking("e", ("the fox", 1), (LONG, 3), ("the owl", 2)),
    ranking("f", ("the fox", 1), ("the fox", 3), ("the owl", 5)),
]


def test_what_carries_no_signal_or_does_not_fit_is_left_out_and_reported(tmp_path, capsys):
    config = changed(recipe(tmp_path, rankings=[*lines("rankings"), *NO_SIGNAL, *PARTLY]), data__strict=False)
    run = Run(config, tmp_path / "run")
    train = run.records(Ranking, "train")
    assert [(record.prompt, record.responses, record.scores) for record in train[20:]] == [
        ("e", ("the fox", "the owl"), (1, 2)),
        ("f", ("the fox", "the fox", "the owl"), (2, 2, 5)),
    ]
    left_out = {
        "all answers tie": 2,
        "empty text": 1,
        "equal answers with different scores": 1,
        "prompt over data.max_prompt": 1,
        "response over data.max_response": 1,
    }
    found = prepare_stage.summarize(run)["rankings"]["train"]
    assert found["left_out"] == left_out and found["given"] == found["used"] + sum(left_out.values()) == 28
    assert found["changed"] == {"equal answers with different scores": 1, "response over data.max_response": 1}
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("rankings, train: 2 of 22 records are used in part (equal answers with different scores: 1")
    assert second.startswith(
        "warning: rankings, train: 6 of 28 records are left out (all answers tie: 2, empty text: 1"
    )
    assert "prompts have 2 to " in second and "raise data.max_prompt (16)" in second
    report = (tmp_path / "run" / "data" / "report.md").read_text()
    assert "| rankings | train | 28 | 22 | 33207 | all answers tie: 2, " in report
    assert "| text | test | 20 | 20 |  | 0 | 0 |" in report and "## Records per user" not in report


@pytest.mark.parametrize("line", [*NO_SIGNAL, *PARTLY])
def test_with_strict_each_of_them_is_an_error(tmp_path, line):
    with pytest.raises(InputError, match=r"^\S*rankings.jsonl:61: \S+: expected"):
        prepare(recipe(tmp_path, rankings=[*lines("rankings"), line]), tmp_path / "run")


def test_a_split_that_is_lost_is_reported_with_count_length_and_key(tmp_path):
    changed_lines = lines("demonstrations", response=range(1, 60, 3))
    config = changed(recipe(tmp_path, demonstrations=changed_lines), data__strict=False)
    with pytest.raises(DataError) as error:
        Run(config, tmp_path / "run").require("sft")
    assert re.fullmatch(
        rf"{tmp_path}/demonstrations.jsonl: expected Demonstration records in the split validation that can be used, "
        r"found none of 20: response over data.max_response: 20; responses have (\d+) to \1 tokens, .*: "
        r"raise data.max_response \(12\)",
        str(error.value),
    )


def test_a_split_that_was_lost_can_be_mended(tmp_path):
    config = changed(
        recipe(tmp_path, demonstrations=lines("demonstrations", response=range(1, 60, 3))), data__strict=False
    )
    with pytest.raises(DataError, match="in the split validation that can be used"):
        Run(config, tmp_path / "run").require("sft")
    assert "20 of 20 records are left out" in "".join(warning_log.read(tmp_path / "run"))
    (tmp_path / "demonstrations.jsonl").write_text("\n".join(lines("demonstrations")) + "\n")
    run = Run(config, tmp_path / "run")
    run.require("sft")
    assert len(run.records(Demonstration, "validation")) == 20


def test_long_prompts_are_cut_if_the_recipe_says_so(tmp_path):
    config = changed(recipe(tmp_path, prompts=lines("prompts", prompt=[0])), data__cut_prompts=True)
    run = Run(config, tmp_path / "run")
    record = run.records(Prompt, "train")[0]
    assert record.prompt == LONG and len(run.layout.encode_prompt(record.prompt)) == 16


@pytest.mark.parametrize(
    ("stages", "kinds"),
    [
        (("pretrain",), ["text"]),
        (("sft",), ["demonstrations"]),
        (("pretrain", "sft"), ["text", "demonstrations"]),
        (("reward",), ["rankings"]),
        (("dpo",), ["rankings"]),
    ],
)
def test_nothing_is_asked_for_but_what_the_stages_need(tmp_path, stages, kinds):
    path = tmp_path / "other" / "data" / "tokenizer.model"
    Run(recipe(tmp_path), tmp_path / "other").require(*STAGES)
    only = {f"files__{name}": "" for name in RECORDS if name not in kinds}
    run = Run(changed(recipe(tmp_path), tokenizer__path=str(path), **only), tmp_path / "run")
    run.require(*stages)
    for name in kinds:
        with pytest.raises(ConfigError, match=f"^files.{name}: expected a file of "):
            Run(changed(run.config, **{f"files__{name}": ""}), tmp_path / f"without_{name}").require(*stages)


def test_records_can_be_added_for_a_later_stage(tmp_path):
    config = recipe(tmp_path)
    Run(changed(config, files__demonstrations="", files__rankings="", files__prompts=""), tmp_path / "run").require(
        "pretrain"
    )
    before = (tmp_path / "run" / "data" / "tokenizer.model").read_bytes()
    later = Run(changed(config, files__text="", files__rankings=""), tmp_path / "run")
    later.require("sft", "ppo_init", "ppo", "ppo_ptx")
    assert (tmp_path / "run" / "data" / "tokenizer.model").read_bytes() == before


def test_a_run_reads_other_formats_and_fields(tmp_path):
    config = recipe(tmp_path)
    rows = [json.loads(line) for line in lines("demonstrations")]
    table = "question,answer,split\n" + "".join(f"{r['prompt']},{r['response']},{r['split']}\n" for r in rows)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text(table)
    names = "prompt=question, response=answer"
    config = changed(config, files__demonstrations=f"{tmp_path}/csv", files__fields=names)
    found = Run(config, tmp_path / "run").records(Demonstration, "train")
    assert [record.prompt for record in found] == [row["prompt"] for row in rows[::3]]
    assert found[0].where == f"{tmp_path}/csv/a.csv:2"


def test_no_test_prompt_is_trained_on_whichever_file_has_the_users(tmp_path, capsys):
    prompts = [f"dish {i}" for i in range(60)]
    shared = {
        "prompts": [{"prompt": prompt, "user": f"u{i % 20}"} for i, prompt in enumerate(prompts)],
        "demonstrations": [{"prompt": prompt, "response": "a fox"} for prompt in prompts],
        "rankings": [
            {"prompt": prompt, "responses": ["a", "b"], "scores": [1, 0], "user": f"annotator {i}"}
            for prompt in prompts
            for i in range(3)
        ],
    }
    written = {name: [json.dumps(record) for record in given] for name, given in shared.items()}
    config = changed(
        recipe(tmp_path, **written), data__shared_prompts="leave out", data__validation=0.2, data__test=0.2
    )
    run = Run(config, tmp_path / "run")
    kinds = {"prompts": Prompt, "demonstrations": Demonstration, "rankings": Ranking}
    by_split = {split: set() for split in SPLITS}
    for kind in kinds.values():
        for split in SPLITS:
            by_split[split] |= {record.prompt for record in run.records(kind, split)}
    assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["validation"]
    assert not by_split["validation"] & by_split["test"] and set().union(*by_split.values()) == set(prompts)
    counts = prepare_stage.summarize(run)
    for name, given in shared.items():  # all are used, because no split is given
        assert sum(found["used"] for found in counts[name].values()) == len(given)
    assert not capsys.readouterr().out


def test_training_records_with_a_prompt_of_a_given_test_split_are_left_out(tmp_path, capsys):
    test = [json.dumps({"prompt": dish, "split": "test"}) for dish in DISHES[:8]]
    train = [json.dumps({"prompt": f"  {dish}", "response": "r", "split": "train"}) for dish in DISHES]
    held_out = json.dumps({"prompt": "held out", "response": "r", "split": "validation"})
    config = recipe(tmp_path, prompts=[*lines("prompts"), *test], demonstrations=[*train, held_out])
    run = Run(changed(config, data__shared_prompts="leave out", data__max_prompt=20), tmp_path / "run")
    assert [record.prompt for record in run.records(Demonstration, "train")] == [f"  {dish}" for dish in DISHES[8:]]
    left_out = "warning: demonstrations, train: 8 of 40 records are left out (prompt of the test split: 8)"
    assert left_out in capsys.readouterr().out.splitlines()


def test_prompts_that_are_added_later_change_other_sets_only_if_they_are_shared(tmp_path):
    config = changed(recipe(tmp_path), data__shared_prompts="leave out")
    given = {"demonstrations": DISHES, "prompts": [f"meal {i}" for i in range(30)]}
    for name, prompts in given.items():
        rows = [{"prompt": prompt, "response": "r", "split": SPLITS[i % 3]} for i, prompt in enumerate(prompts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run" / "data"
    prepare(changed(config, files__prompts="", files__rankings=""), tmp_path / "run")
    before = prepared.fingerprint(folder, "demonstrations")
    prepare(changed(config, files__demonstrations="", files__rankings=""), tmp_path / "run")
    prepare(changed(config, files__rankings=""), tmp_path / "run")
    assert prepared.fingerprint(folder, "demonstrations") == before
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": DISHES[0], "split": "test"}) + "\n")
    prepare(changed(config, files__rankings=""), tmp_path / "run")
    assert prepared.fingerprint(folder, "demonstrations") != before


def test_the_report_has_users_use_cases_and_lengths_beside_the_papers(tmp_path):
    cases = ["Generation", "Generation", "chat", "fables"]
    rows = [
        {"prompt": f"dish {i}", "user": f"u{i % 4}", "use_case": cases[i % 4], "split": SPLITS[i % 3]}
        for i in range(24)
    ]
    config = recipe(tmp_path, prompts=[json.dumps(row) for row in rows])
    run = Run(config, tmp_path / "run")
    run.require("ppo")
    found = prepare_stage.summarize(run)["prompts"]["train"]
    assert found["users"] == {"users": 4, "records": 8} and found["use_cases"]["Generation"] == 4
    lines = (run.data_folder / "report.md").read_text().splitlines()
    assert "| prompts | train | 4 | 2.00 | 6.01 |" in lines
    assert {"| prompts | Generation | 50.0 | 45.6 |", "| prompts | fables | 25.0 |  |"} <= set(lines)
    place = next(i for i, line in enumerate(lines) if line.startswith("| prompts | train | prompt | 8 | "))
    assert lines[place + 1] == "|  |  | the paper's | 31144 | 166 | 278 | 2 | 19 | 62 | 179 | 2044 |"  # Table 9
    assert any(line.startswith("| prompts | train | Generation | 4 | ") for line in lines)
    assert "|  |  | the paper's | 21684 | 130 | 223 | 1 | 20 | 52 | 130 | 1999 |" in lines  # Table 10
    assert any(line.startswith("| prompts | train | customer | prompt | 8 | ") for line in lines)
    assert not list(run.data_folder.glob("*.png"))  # too few


def test_annotations_writers_and_sources_are_reported(tmp_path):
    rows = [
        {
            "prompt": f"dish {i}",
            "response": "yes",
            "user": f"u{i % 4}" if i % 2 else None,
            "annotations": {"ambiguous": i % 4 == 0, "closed domain": True},
            "source": "left" if i < 6 else "right",
            "split": "train" if i < 20 else "validation",
        }
        for i in range(24)
    ]
    config = recipe(tmp_path, demonstrations=[json.dumps(row) for row in rows])
    run = Run(changed(config, mixture__epochs="left=2"), tmp_path / "run")
    run.require("sft")
    lines = (run.data_folder / "report.md").read_text().splitlines()
    assert {
        "| demonstrations | train | ambiguous | 25.0 | 5.1 |",  # Table 7
        "| demonstrations | train | closed domain | 100.0 | 27.4 |",
        "| demonstrations | train | left | 6 | 0.462 | 1.54 |",  # 12 of 26 examples, in 20 of an epoch
        "| demonstrations | train | right | 14 | 0.538 | 0.77 |",
        "|  |  |  | the paper's | 1533 | 88 | 179 | 0 | 15 | 39 | 88 | 2048 |",  # Table 11
    } <= set(lines)
    assert any(line.startswith("| demonstrations | train | labeler | response | 10 | ") for line in lines)
    mixture = run.mixture(Demonstration)
    assert {name: len(members) for name, members in mixture.members.items()} == {"left": 6, "right": 14}
