"""Files with the shape of faults that people report about other systems: they are read, counted or refused."""

import json

import pytest

from instructjax.errors import DataError, TokenizerError
from instructjax.stages import prepare
from instructjax.stages.run import Run
from tests import local_data
from tests.recipes import changed, recipe

FILES = local_data.FAULTS / "records"
KEYS = {
    "data__strict": False,
    "data__shared_prompts": "leave out",
    "data__max_prompt": 60,
    "data__max_response": 60,
    "model__max_length": 128,
    "tokenizer__vocab_size": 400,
}
STAGES = {"text": "pretrain", "demonstrations": "sft", "rankings": "reward", "prompts": "ppo"}

pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason=local_data.ABSENT)


def prepared(tmp_path, stage=None, **changes):
    """Returns the summary of the records that a stage needs; `changes` name files, or keys as in `recipes.changed`."""
    base = {f"files__{path.stem}": str(path) for path in (FILES / "base").glob("*.jsonl")}
    named = {f"files__{kind}": str(FILES / name) for kind, name in changes.items() if kind in STAGES}
    keys = {key: value for key, value in changes.items() if key not in STAGES}
    run = Run(changed(recipe(tmp_path), **KEYS | base | named | keys), tmp_path / "run")
    run.require(stage or next(STAGES[kind] for kind in changes if kind in STAGES))
    return prepare.summarize(run)


def counts(splits):
    """Returns (given, used, left out by reason, changed by reason) over all splits of one kind of records."""
    left_out, in_part = {}, {}
    for found in splits.values():
        for total, part in ((left_out, found["left_out"]), (in_part, found["changed"])):
            total.update({reason: total.get(reason, 0) + n for reason, n in part.items()})
    given, used = (sum(found[name] for found in splits.values()) for name in ("given", "used"))
    return given, used, left_out, in_part


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("rankings", "ties_some.jsonl", (80, 60, {"all answers tie": 20}, {})),
        ("rankings", "long_one_of_k.jsonl", (80, 80, {}, {"response over data.max_response": 40})),
        ("rankings", "same_two.jsonl", (80, 80, {}, {"equal answers with different scores": 80})),
        ("rankings", "close.jsonl", (80, 80, {}, {})),
        ("rankings", "pairs_chosen.jsonl", (80, 80, {}, {})),
        ("rankings", "hh_text.jsonl", (80, 80, {}, {})),
        ("demonstrations", "messages.jsonl", (80, 80, {}, {})),
        ("demonstrations", "alpaca.jsonl", (80, 80, {}, {})),
        ("demonstrations", "pairs.csv", (80, 80, {}, {})),
        ("demonstrations", "sparkline_d.jsonl", (80, 80, {}, {})),
        ("text", "sparkline.jsonl", (80, 80, {}, {})),
    ],
)
def test_records_that_people_have_are_used_or_counted(tmp_path, kind, name, expected):
    assert counts(prepared(tmp_path, **{kind: name})[kind]) == expected


def test_no_prompt_is_on_both_sides_when_one_file_names_users(tmp_path):
    found = prepared(tmp_path, demonstrations="users_here.jsonl", prompts="no_users_there.jsonl", stage="ppo_ptx")
    for kind in ("demonstrations", "prompts"):
        assert counts(found[kind]) == (80, 80, {}, {})
    # The same prompts in both files: the same splits.
    assert {split: found["prompts"][split]["given"] for split in found["prompts"]} == {
        split: found["demonstrations"][split]["given"] for split in found["demonstrations"]
    }


def test_users_that_are_annotators_leave_no_validation_split_and_the_error_says_why(tmp_path):
    cause = r"found only train \(240\) of 40 users \(splits are by .user., who sent the prompt\); add records"
    with pytest.raises(DataError, match=cause):
        prepared(tmp_path, rankings="pairs_users.jsonl")
    lines = (FILES / "pairs_users.jsonl").read_text().splitlines()
    anonymous = [{name: value for name, value in json.loads(line).items() if name != "user"} for line in lines]
    (tmp_path / "anonymous.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in anonymous))
    splits = prepared(tmp_path, rankings=tmp_path / "anonymous.jsonl")["rankings"]
    assert counts(splits)[:2] == (240, 240)
    assert all(found["given"] % 3 == 0 for found in splits.values())  # the three pairs of a prompt stay together


def test_rare_characters_are_left_to_bytes_by_a_key(tmp_path):
    with pytest.raises(TokenizerError, match="^tokenizer.vocab_size: .*tokenizer.character_coverage"):
        prepared(tmp_path, text="many_characters.jsonl")
    keys = {"tokenizer__character_coverage": 0.5, "tokenizer__vocab_size": 390}
    assert counts(prepared(tmp_path, text="many_characters.jsonl", **keys)["text"])[:2] == (300, 300)


def test_a_split_that_is_lost_is_an_error_with_its_count_and_key(tmp_path):
    cause = r"found none of 4: prompt over data.max_prompt: 4; prompts have 1829 .* raise data.max_prompt \(60\)$"
    with pytest.raises(DataError, match=cause):
        prepared(tmp_path, demonstrations="long_validation.jsonl")


def test_one_test_prompt_is_not_enough_for_an_evaluation(tmp_path):
    with pytest.raises(
        DataError, match="expected at least 2 different prompts in the split test for evaluate, found 1;"
    ):
        prepared(tmp_path, prompts="one_test_prompt.jsonl", stage="evaluate")
