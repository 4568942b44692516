"""Tests that exports of labeling tools, trees of messages, and rows with one answer each give the right records."""

import json

import pytest

from instructjax import records
from instructjax.data import exports, formats, shapes
from instructjax.errors import RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text


def message(text, role, *replies, **more):
    return {"text": text, "role": role, "lang": "en", "deleted": False, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": message(
        "Hi.",
        "prompter",
        message("Go.", "assistant", rank=1),
        message("Hello!", "assistant", message("And?", "prompter", message("That is all.", "assistant")), rank=0),
        message("Spam.", "assistant", rank=2, deleted=True),
    ),
}
ARGILLA = {  # as Dataset.records.to_json writes it
    "id": "7",
    "status": "completed",
    "fields": {"instruction": "Hi.", "first": "Hello!", "second": "Go.", "third": "Well."},
    "metadata": {},
    "suggestions": {},
    "responses": {
        "preference": [
            {"value": ["first", "third", "second"], "user_id": "ann"},
            {"value": ["second", "first"], "user_id": "bob", "status": "draft"},
        ],
        "comment": [{"value": "good", "user_id": "ann"}],
    },
}
HUB = {  # as the server writes it to the Hub: tied fields have the same rank
    "id": "7",
    "instruction": "Hi.",
    "first": "Hello!",
    "second": "Go.",
    "third": "Well.",
    "preference.responses": [
        [{"value": "first", "rank": 1}, {"value": "second", "rank": 1}, {"value": "third", "rank": 2}],
        [{"value": "third", "rank": None}, {"value": "first", "rank": None}],
        None,
    ],
    "preference.responses.users": ["ann", "bob", "cyd"],
    "preference.responses.status": ["submitted", "submitted", "discarded"],
}
TASK = {
    "prompt": "Hi.",
    "items": [
        {"id": "a", "title": "Model A", "body": "Go."},
        {"id": "b", "title": "Model B", "body": "Hello!"},
        {"id": 3, "title": "Model C", "body": "Well."},
    ],
    "text1": "Hello!",
    "text2": "Go.",
}


def label_studio(*results, **annotation):
    return {"id": 1, "data": TASK, "annotations": [{"completed_by": 5, "result": list(results), **annotation}]}


RANKER = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": {"rank": ["b", "3", "a"]}}}
PAIRWISE = {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": "right"}}


def read(tmp_path, rows, kind, names=""):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    return list(records.valid(formats.read(tmp_path / "a.json", kind, shapes.parse_names(names, "files.fields"))))


def ranked(record):
    """Returns the answers from the best to the worst, those that tie in a list."""
    levels = sorted(set(record.scores), reverse=True)
    pairs = list(zip(record.responses, record.scores, strict=True))
    return [[answer for answer, score in pairs if score == level] for level in levels]


def test_a_tree_of_messages_gives_rankings_demonstrations_prompts_and_its_best_path(tmp_path):
    turns = "Human: Hi.\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant:"
    (ranking,) = read(tmp_path, [TREE], Ranking)
    assert (ranking.prompt, ranked(ranking)) == ("Hi.", [["Hello!"], ["Go."]])
    found = read(tmp_path, [TREE], Demonstration)
    assert [(record.prompt, record.response) for record in found] == [("Hi.", "Hello!"), (turns, "That is all.")]
    assert [record.prompt for record in read(tmp_path, [TREE], Prompt)] == ["Hi.", turns]
    (text,) = read(tmp_path, [TREE], Text)
    assert text.text == f"{turns} That is all."
    assert {record.user for record in (ranking, *found, text)} == {"t1"}  # one split for the whole tree


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ARGILLA, {"ann": [["Hello!"], ["Well."], ["Go."]]}),
        (HUB, {"ann": [["Hello!", "Go."], ["Well."]], "bob": [["Well."], ["Hello!"]]}),
    ],
)
def test_argilla_gives_a_ranking_for_each_submitted_answer(tmp_path, row, expected):
    found = read(tmp_path, [row], Ranking, "prompt=instruction")
    assert {record.labeler: ranked(record) for record in found} == expected
    assert {record.prompt for record in found} == {"Hi."}
    assert [record.prompt for record in read(tmp_path, [row], Prompt, "prompt=instruction")] == ["Hi."]


def test_label_studio_gives_a_ranking_for_each_annotation(tmp_path):
    by_ranker, by_pair = read(tmp_path, [label_studio(RANKER, {"type": "choices"}, PAIRWISE)], Ranking)
    assert ranked(by_ranker) == [["Hello!"], ["Well."], ["Go."]] and by_ranker.labeler == "5"
    assert ranked(by_pair) == [["Go."], ["Hello!"]]
    assert [record.prompt for record in read(tmp_path, [label_studio(RANKER)], Prompt)] == ["Hi."]


def test_tasks_without_a_ranking_are_counted(tmp_path):
    discarded = HUB | {"preference.responses.status": ["discarded"] * 3}
    for row in (discarded, label_studio(), label_studio(RANKER, was_cancelled=True)):
        (found,) = read(tmp_path, [row], Ranking, "" if "data" in row else "prompt=instruction")
        assert found.responses == ()


def test_rows_with_one_answer_each_become_a_ranking_of_each_prompt(tmp_path):
    rows = [
        {"prompt": "p", "response": "a", "help": 1},
        {"prompt": "p", "response": "b", "help": 3},
        {"prompt": "q", "response": "c", "help": 2},
        {"prompt": "r", "responses": ["d", "e"], "scores": [1, 0]},
        {"prompt": "p", "response": "f", "help": 0},
    ]
    found = read(tmp_path, rows, Ranking, "score=help")
    assert [(record.prompt, record.responses, record.scores) for record in found] == [
        ("p", ("a", "b"), (1, 3)),
        ("q", ("c",), (2,)),
        ("r", ("d", "e"), (1, 0)),
        ("p", ("f",), (0,)),
    ]


FEW_SHOT = {
    "instruction": "Name the color.",
    "examples": [
        {"query": f"Of {name}?", "response": color} for name, color in (("a", "red"), ("b", "blue"), ("c", "green"))
    ],
    "use_case": "open qa",
}


def test_a_few_shot_prompt_gives_as_many_examples_as_it_has_pairs(tmp_path):
    found = read(tmp_path, [FEW_SHOT], Demonstration)
    assert [record.response for record in found] == ["red", "blue", "green"]
    assert found[1].prompt == "Name the color.\n\nOf a?\nred\n\nOf c?\ngreen\n\nOf b?"
    assert len({record.user for record in found}) == 1 and found[0].user == found[0].labeler  # in one split
    assert [record.prompt for record in read(tmp_path, [FEW_SHOT], Prompt)] == [record.prompt for record in found]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (HUB | {"preference.responses": [["fourth"]]}, "preference: expected names of fields, found 'fourth'"),
        (label_studio(RANKER | {"value": {}}), "ranker: expected one list of ids, the best first, without buckets"),
        (label_studio(RANKER | {"value": {"ranker": {"rank": ["z"]}}}), "ranker: expected ids of a list in data"),
        (label_studio(PAIRWISE | {"to_name": "text1"}), "pairwise: to_name: expected two fields of data, found"),
        (FEW_SHOT | {"examples": [{"query": "a"}]}, 'examples: expected {"query": text, "response": text}, found'),
        (FEW_SHOT | {"instruction": 3}, "instruction: expected text, found 3"),
        (label_studio(PAIRWISE | {"value": {}}), "pairwise: selected: expected left or right, found None"),
    ],
)
def test_what_is_not_as_documented_is_named(tmp_path, row, message):
    with pytest.raises(RecordError) as error:
        if "examples" in row:
            read(tmp_path, [row], Demonstration)
        read(tmp_path, [row], Ranking, "" if "data" in row else "prompt=instruction")
    assert str(error.value).startswith(f"{tmp_path}/a.json:1: {message}")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"message_tree_id": "t", "prompt": message("Hi.", "prompter") | {"replies": True}}, "replies"),
        ({"data": {}, "annotations": [{"result": True}]}, "result"),
    ],
)
def test_what_is_not_a_list_is_named(row, name):
    with pytest.raises(RecordError, match=f"^a:1: {name}: expected a list, found True$"):
        list(exports.expand(row, Ranking, "a:1"))
