"""Tests of the queue over HTTP: three tasks, ties, drafts, skipping, going back, and overlap."""

import json

import pytest

from instructjax import records
from instructjax.labeling import labels
from instructjax.labeling.tasks import Page, Task
from instructjax.records import TABLE3_FLAGS, Demonstration, Ranking
from tests.labeling import desks
from tests.labeling.desks import rank, ranking_tasks


def exported(desk, kind=Ranking, name="rankings.jsonl"):
    return [records.parse(line, kind) for line in desk.export(name).splitlines()]


def test_a_ranking_with_ties_is_exported_in_the_order_of_the_task(desk):
    desk.add(
        [Task(kind="ranking", prompt="p", answers=("a", "b", "c"), fields={"user": "u", "models": ["x", "y", "z"]})]
    )
    ann = desk.client("ann")
    assert ann.post(ann.get("/").path, **rank(ann.get("/"), {"a": 1, "b": 2, "c": 2})).path == "/done"
    (record,) = exported(desk)
    assert (record.responses, record.scores, record.labeler) == (("a", "b", "c"), (1, 2, 2), "ann")
    assert (record.user, record.extra["models"], record.metadata) == ("u", ["x", "y", "z"], None)


def test_a_comparison_rates_each_answer_then_ranks_all(desk):
    desk.add(ranking_tasks(1, 3, "comparison"))
    ann = desk.client("ann")
    page = ann.get("/")
    qualities = {}
    for value in (7, 2, 5):
        (answer,) = page.answers
        qualities[answer] = value
        flag = {"hallucination": 1} if value == 2 else {}
        page = ann.post(page.path, csrf=page.csrf, overall_quality=value, notes=f"n{value}", seconds="1.5", **flag)
    assert page.path.endswith("/4") and "quality 7" in page.text
    ann.post(page.path, **rank(page, qualities))
    (record,) = exported(desk)
    given = dict(zip(record.responses, record.metadata, strict=True))
    assert {text: fields["overall_quality"] for text, fields in given.items()} == qualities
    assert [fields["hallucination"] for fields in given.values()] == [qualities[text] == 2 for text in given]
    assert set(record.metadata[0]) == {"overall_quality", *TABLE3_FLAGS}
    assert record.extra["seconds"] == 4.5
    assert [qualities[text] for text in record.responses] == [int(note[1:]) for note in record.extra["notes"][:3]]
    assert sorted(record.scores, key=record.scores.index) == list(record.scores)
    order = sorted(range(3), key=record.scores.__getitem__)
    assert [qualities[record.responses[k]] for k in order] == [2, 5, 7]


def test_a_demonstration_keeps_its_text(desk):
    desk.add([Task(kind="demonstration", prompt="p")])
    ann = desk.client("ann")
    text = "\n two\nlines & <b>\x00é\U0001f98a"
    ann.post(ann.get("/").path, csrf=ann.get("/").csrf, response=text.replace("\n", "\r\n"))
    (record,) = exported(desk, Demonstration, "demonstrations.jsonl")
    assert record.response == text


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("demonstration", "Write a response"), ("rating", "overall quality"), ("ranking", "4 to go")],
)
def test_an_untouched_page_is_not_a_label(desk, kind, fault):
    desk.add([Task(kind=kind, prompt="p", answers=() if kind == "demonstration" else tuple("abcd"))])
    ann = desk.client("ann")
    page = ann.get("/")
    refused = ann.post(page.path, csrf=page.csrf)
    assert refused.status == 422 and fault in refused.text
    name = {"demonstration": "demonstrations", "rating": "ratings", "ranking": "rankings"}[kind]
    assert desk.export(f"{name}.jsonl") == ""


def test_a_draft_is_shown_again_and_is_not_exported(desk):
    desk.add(ranking_tasks(2))
    ann = desk.client("ann")
    page = ann.get("/")
    assert ann.post(f"{page.path}/draft", csrf=page.csrf, **{"rank-1": 3, "seconds": 9}).status == 204
    again = ann.get("/")
    assert again.path == page.path and again.answers == page.answers
    assert 'name="rank-1" value="3" checked' in again.text and again.text.count(" checked") == 1
    assert 'name="seconds" value="9.0"' in again.text
    assert desk.export() == ""


def test_a_skipped_task_goes_to_another_labeler_and_can_be_taken_up_again(desk):
    desk.add(ranking_tasks(1))
    ann, ben = desk.client("ann"), desk.client("ben")
    page = ann.get("/")
    assert ben.get("/").path == "/done"  # ann has it
    done = ann.post(page.path, csrf=page.csrf, action="skip")
    assert done.path == "/done" and "skipped" in done.text
    assert ben.get("/").path != "/done"
    scores = {text: k for k, text in enumerate(page.answers)}
    ann.post(page.path, **rank(ann.get(page.path), scores))
    assert [record.labeler for record in exported(desk)] == ["ann"]


def test_going_back_changes_a_label_and_submitting_twice_doubles_none(desk):
    desk.add(ranking_tasks(2))
    ann = desk.client("ann")
    first = ann.get("/")
    scores = {text: k for k, text in enumerate(first.answers)}
    second = ann.post(first.path, **rank(first, scores))
    assert ann.post(first.path, **rank(first, scores)).path == second.path
    assert f'href="{first.path}" id="back"' in second.text and "Task 2 of 2" in second.text
    assert len(exported(desk)) == 1
    back = ann.get(first.path)
    assert back.answers == first.answers and back.text.count(" checked") == 4
    ann.post(first.path, **rank(back, {text: -k for text, k in scores.items()}))
    (record,) = exported(desk)
    assert [record.scores[k] for k in sorted(range(4), key=lambda k: scores[record.responses[k]])] == [4, 3, 2, 1]


def test_a_change_to_an_earlier_task_leads_to_the_open_one(desk):
    desk.add(ranking_tasks(3))
    ann = desk.client("ann")
    first = ann.get("/")
    form = rank(first, {text: text for text in first.answers})
    second = ann.post(first.path, **form)
    third = ann.post(second.path, **rank(second, {text: text for text in second.answers}))
    assert 'id="continue"' in ann.get(first.path).text and 'id="continue"' not in third.text
    assert ann.post(first.path, **form).path == third.path


def test_a_draft_that_arrives_after_its_submission_changes_nothing(desk):
    desk.add(ranking_tasks(1))
    ann = desk.client("ann")
    page = ann.get("/")
    form = rank(page, {text: k for k, text in enumerate(page.answers)})
    ann.post(page.path, **form)
    ann.post(f"{page.path}/draft", **form, seconds=3)
    assert "Changes since then" not in ann.get(page.path).text
    ann.post(f"{page.path}/draft", **(form | {"rank-0": 1, "rank-1": 1}))
    assert "Changes since then" in ann.get(page.path).text


def test_each_task_goes_to_as_many_labelers_as_it_wants_and_never_twice_to_one(desk):
    desk.add(ranking_tasks(3), copies=2)
    for name in ("ann", "ben", "cid"):
        client = desk.client(name)
        page = client.get("/")
        while page.path != "/done":
            page = client.post(page.path, **rank(page, {text: text for text in page.answers}))
    given = [(record.prompt, record.labeler) for record in exported(desk)]
    assert len(given) == len(set(given)) == 6
    assert {prompt: sum(p == prompt for p, _ in given) for prompt, _ in given} == dict.fromkeys(
        ("prompt 0", "prompt 1", "prompt 2"), 2
    )


def test_orders_differ_between_labelers_and_models_are_not_shown(desk):
    task = Task(kind="ranking", prompt="p", answers=tuple("abcdefghi"), fields={"models": ["sft-secret"] * 9})
    desk.add([task], copies=8)
    pages = [desk.client(f"labeler {i}").get("/") for i in range(8)]
    assert len({tuple(page.answers) for page in pages}) > 1  # all equal with probability (1 / 9!)^7
    assert not any("sft-secret" in page.text for page in pages)


def test_equal_tasks_are_added_once(desk):
    assert desk.add(ranking_tasks(3)) == 3
    assert desk.add(ranking_tasks(4)) == 1
    assert desk.add(ranking_tasks(4), group="heldout") == 4


def test_groups_get_their_own_tasks(desk):
    desk.add(ranking_tasks(1), group="heldout")
    assert desk.client("ann").get("/").path == "/done"
    hal = desk.client("hal", "heldout")
    hal.post(hal.get("/").path, **rank(hal.get("/"), {text: 1 for text in hal.get("/").answers}))
    assert desk.export() == ""
    (record,) = exported(desk, name="heldout_rankings.jsonl")
    assert record.scores == (1, 1, 1, 1)  # a tie of all answers is kept


def test_a_dismissed_labeler_is_out_and_the_open_task_goes_on(desk):
    desk.add(ranking_tasks(1))
    ann, ben, admin = desk.client("ann"), desk.client("ben"), desk.admin()
    ann.get("/")
    assert ben.get("/").path == "/done"
    admin.post("/admin/labelers/1", csrf=admin.get("/admin").csrf, action="dismiss")
    assert ann.get("/").status == 403
    assert ben.get("/").path != "/done"


def test_ranks_beyond_the_answers_and_other_digits_count_as_missing():
    for value in ("0", "3", "-1", "1.0", "", "٢", "99999", None):
        content = labels.parse(Page("rank"), {"rank-0": value, "rank-1": "1"}, [1, 0])
        assert content["ranks"] == [1, None]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e9", "x", None])
def test_impossible_times_count_as_none(seconds):
    assert labels.parse(Page("write"), {"seconds": seconds}, [])["seconds"] == 0


def test_too_long_responses_are_refused_and_not_cut(desk):
    desk.add([Task(kind="demonstration", prompt="p")])
    ann = desk.client("ann")
    page = ann.get("/")
    refused = ann.post(page.path, csrf=page.csrf, response="x" * (labels.MAX_TEXT + 10))
    assert refused.status == 422 and "at most" in refused.text


def test_the_export_is_json_lines_of_the_house(desk):
    desk.add(ranking_tasks(2))
    ann = desk.client("ann")
    for _ in range(2):
        ann.post(ann.get("/").path, **rank(ann.get("/"), {text: text for text in ann.get("/").answers}))
    for line in desk.export().splitlines():
        assert json.loads(line) == json.loads(records.to_json(records.parse(line, Ranking)))
    assert desks.Client("127.0.0.1", desk.port).get("/admin/export/rankings.jsonl").status == 403
