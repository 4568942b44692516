"""Tests of screening, of the administrator's page, and of files of tasks."""

import json

import pytest

from instructjax.errors import RecordError
from instructjax.labeling import export, labels, tasks
from instructjax.labeling.tasks import Task
from tests.labeling import desks
from tests.labeling.desks import rank, ranking_tasks

GOLD = {
    "scores": [3, 2, 2, 1],
    "metadata": [{"overall_quality": 5, "violent_content": k == 1, "sexual_content": False} for k in range(4)],
}
SCREENING = Task(kind="comparison", prompt="screening", answers=tuple("abcd"), gold=GOLD)


def screened(desk, scores, flagged):
    """Returns a labeler's page after screening; they rank by `scores` and flag one answer as harmful."""
    client = desk.client("ann")
    page = client.get("/")
    for _ in range(4):
        flags = {"harmful_advice": 1} if page.answers == [flagged] else {}
        page = client.post(page.path, csrf=page.csrf, overall_quality=4, **flags)
    page = client.post(page.path, **rank(page, scores))
    if page.path != "/done":
        page = client.post(page.path, csrf=page.csrf, response="a demonstration")
    return client, page


@pytest.mark.parametrize(
    ("scores", "flagged", "sensitive", "ranking"),
    [
        ({"a": 4, "b": 3, "c": 2, "d": 1}, "b", "1.00", "1.00"),
        ({"a": 1, "b": 2, "c": 2, "d": 3}, "b", "1.00", "0.00"),
        ({"a": 1, "b": 4, "c": 3, "d": 1}, "d", "0.50", "0.50"),  # ab, ac wrong; bd, cd right; ad tied
    ],
)
def test_screening_compares_with_the_right_answer(desk, scores, flagged, sensitive, ranking):
    desk.add([SCREENING, Task(kind="demonstration", prompt="write")], "screening", copies=None)
    desk.add(ranking_tasks(1))
    client, page = screened(desk, scores, flagged)
    assert page.path == "/done" and "screening tasks" in page.text
    admin = desk.admin()
    overview = admin.get("/admin")
    assert f"{sensitive} · {ranking} · –" in overview.text and "waits" in overview.text
    scored = admin.post("/admin/scores/2", csrf=overview.csrf, score=6)
    assert scored.path == "/admin/tasks/2" and "<option selected>6" in scored.text
    assert f"{sensitive} · {ranking} · 6.0" in admin.get("/admin").text
    admin.post("/admin/labelers/1", csrf=overview.csrf, action="admit")
    assert "prompt 0" in client.get("/").text
    assert desk.export() == "" and desk.export("demonstrations.jsonl") == ""


def test_heldout_labelers_are_not_screened_and_all_training_labelers_are(desk):
    desk.add([SCREENING], "screening", copies=None)
    desk.add(ranking_tasks(1), "heldout")
    assert "prompt 0" in desk.client("hal", "heldout").get("/").text
    for name in ("ann", "ben", "cid"):
        assert "screening" in desk.client(name).get("/").text


@pytest.mark.parametrize(
    ("rankings", "expected"),
    [
        ([[1, 2, 3]], (0, 0)),
        ([[1, 2, 3], [3, 2, 1]], (3, 3)),
        ([[1, 2, 2], [1, 1, 2]], (0, 1)),
        ([[1, 2], [2, 1], [1, 2]], (2, 3)),
    ],
)
def test_conflicts_are_counted_over_pairs_of_labelers(rankings, expected):
    assert export.count_conflicts(rankings) == expected


@pytest.mark.parametrize(
    ("ranks", "expected"), [([1, 2, 3], [3, 2, 1]), ([2, 2, 2], [1, 1, 1]), ([9, 1, 9, 4], [1, 3, 1, 2])]
)
def test_ranks_become_levels(ranks, expected):
    assert labels.scores(ranks) == expected


def upload(admin, lines, **fields):
    boundary = "boundary"
    parts = {"csrf": admin.get("/admin").csrf, "kind": "ranking", "group": "training", "copies": "2"} | fields
    body = "".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    body += f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="t.jsonl"\r\n\r\n{lines}\r\n'
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    return admin.send("POST", "/admin/tasks", f"{body}--{boundary}--\r\n".encode(), headers.items())


def test_tasks_are_uploaded_and_wrong_lines_are_named(desk):
    admin = desk.admin()
    right, other = (json.dumps({"prompt": prompt, "responses": ["a", "b"]}) for prompt in "pq")
    assert "2 new tasks of 3" in upload(admin, f"{right}\n\n{right}\n{other}").text
    refused = upload(admin, f'{right}\n{{"prompt": "p"}}\n')
    assert refused.status == 422 and "t.jsonl:2: responses: expected 2 to 9 answers" in refused.text
    for fields in ({"copies": "0"}, {"copies": "x"}, {"kind": "x"}, {"group": "x"}):
        assert upload(admin, right, **fields).status == 422


def test_labelers_do_not_wait_while_agreement_is_measured(tmp_path):
    def agreement(rankings):
        paths.append(ann.get("/").path)
        return {"pairwise": None, "alpha": None, "labelers": {}}

    with desks.serve(f"sqlite:///{tmp_path}/labels.sqlite", agreement) as desk:
        desk.add(ranking_tasks(1))
        paths, ann = [], desk.client("ann")
        assert desk.admin().get("/admin").status == 200
    assert set(paths) == {"/task/1/1"}


def test_labelers_are_invited_on_the_page(desk):
    admin = desk.admin()
    token = admin.get("/admin").csrf
    assert "ann" in admin.post("/admin/labelers", csrf=token, name=" ann ", group="training").text
    for name, group in (
        ("", "training"),
        ("x" * 65, "training"),
        ("a\nb", "training"),
        ("ann", "heldout"),
        ("ben", "screening"),
    ):
        assert admin.post("/admin/labelers", csrf=token, name=name, group=group).status == 422


@pytest.mark.parametrize(
    ("kind", "fields", "fault"),
    [
        ("demonstration", {"prompt": " "}, "prompt: expected text, found none"),
        ("ranking", {"prompt": "p", "responses": ["a"]}, "responses: expected 2 to 9 answers for a ranking, found 1"),
        ("rating", {"prompt": "p", "responses": []}, "responses: expected 1 to 9 answers for a rating, found 0"),
        ("rating", {"prompt": "p"}, "responses: expected 1 to 9 answers for a rating, found None"),
        ("ranking", {"prompt": "p", "responses": ["a", 1]}, "responses[1]: expected text, found 1"),
    ],
)
def test_lines_that_are_not_tasks_are_refused(kind, fields, fault):
    with pytest.raises(RecordError, match="^f:1: ") as caught:
        tasks.parse([("f:1", json.dumps(fields))], kind)
    assert str(caught.value) == f"f:1: {fault}"


def test_a_screening_task_needs_its_right_answer():
    line = {"prompt": "p", "responses": ["a", "b"], "metadata": [{}, {}]}
    with pytest.raises(
        RecordError, match="f:1: scores: expected the right answer of a screening comparison, found none"
    ):
        tasks.parse([("f:1", json.dumps(line))], "comparison", is_screening=True)
    with pytest.raises(RecordError, match="f:1: scores: expected 2 numbers"):
        tasks.parse([("f:1", json.dumps(line | {"scores": [1]}))], "comparison", is_screening=True)
    (task,) = tasks.parse([("f:1", json.dumps(line | {"scores": [1, 2]}))], "comparison", is_screening=True)
    assert task.gold == {"scores": [1, 2], "metadata": [{}, {}]} and task.fields == {}
