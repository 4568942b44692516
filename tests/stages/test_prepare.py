"""Preparation: required splits, records that are too long, and no repeated work."""

import gzip
import json

import pytest

from configs import e2e
from instructjax.data.layouts import Layout
from instructjax.errors import DataError
from instructjax.records import Demonstration, Prompt, Ranking
from instructjax.stages.run import Run
from tests.recipes import RECORDS, changed, prepare, recipe

SPLITS = ("train", "validation", "test")
DISHES = [f"dish {i}" for i in range(40)]
LONG = "a fox " * 40


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
        prepare(recipe(tmp_path, **{name: lines(name, splits)}), tmp_path / "run")
    assert str(error.value).startswith(f"{tmp_path}/run/data/{name}: expected records in the splits train, ")
    assert missing in str(error.value).partition(", found")[0]
    assert missing not in str(error.value).partition(", found")[2]


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
    with pytest.raises(DataError, match="data/demonstrations: expected records in the splits train, validation, test"):
        prepare(config, tmp_path / "run")


def test_records_that_are_too_long_are_left_out_and_counted_once(tmp_path, capsys, monkeypatch):
    config = recipe(
        tmp_path,
        demonstrations=lines("demonstrations", prompt=[0, 3], response=[1]),
        prompts=lines("prompts", prompt=[5]),
    )
    config = changed(config, data__drop_long=True)
    workdir = tmp_path / "run"
    prepare(config, workdir)
    assert capsys.readouterr().out.splitlines() == [
        "demonstrations, train: 2 of 20 records are too long and left out",
        "demonstrations, validation: 1 of 20 records are too long and left out",
        "prompts, test: 1 of 20 records are too long and left out",
    ]
    train = Run(config, workdir).records(Demonstration, "train")
    assert [record.prompt for record in train] == [RECORDS["demonstrations"][i]["prompt"] for i in range(6, 60, 3)]
    assert len(Run(config, workdir).records(Prompt, "test")) == 19
    assert len(Run(config, workdir).records(Ranking, "train")) == 20

    def fail(*arguments):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Layout, "check", fail)
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
