"""Tests that strangers, hostile texts and hostile requests do no harm."""

import collections
import concurrent.futures
import re
import stat

import pytest

from instructjax import records
from instructjax.labeling import security
from instructjax.labeling.tasks import Task
from instructjax.records import Ranking
from tests.labeling import desks, postgres
from tests.labeling.desks import Client, rank, ranking_tasks

HOSTILE = [
    "<script>alert(1)</script>",
    "</div></main><img src=x onerror=alert(1)>",
    '" onfocus=alert(1) autofocus x="',
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "</textarea><script>alert(1)</script>",
    "\u202egnp.exe\u2066 \x00 \x1b[31m \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "a" * 5000,
    "'; DROP TABLE tasks; --",
]


def elements(text):
    return re.findall(r"<(\w+)", text)


def test_texts_are_shown_and_not_run(desk):
    plain = [Task(kind="ranking", prompt=f"p{i}", answers=tuple("abcdefgh")) for i in range(2)]
    desk.add([*plain, Task(kind="ranking", prompt="".join(HOSTILE), answers=tuple(HOSTILE))])
    ann = desk.client(HOSTILE[0])
    first = ann.get("/")
    second = ann.post(first.path, **rank(first, {text: text for text in first.answers}), notes=HOSTILE[4])
    page = ann.post(second.path, **rank(second, {text: text for text in second.answers}))
    assert sorted(page.answers) == sorted(HOSTILE)
    assert elements(page.text) == elements(second.text)  # the same elements, however hostile the texts
    assert "&lt;/textarea&gt;&lt;script&gt;" in ann.get(first.path).text  # the note
    ann.post(page.path, **rank(page, {text: k for k, text in enumerate(HOSTILE)}))
    assert desk.export().count("\n") == 3
    overview = desk.admin().get("/admin").text
    assert "<script>alert" not in overview and "&lt;script&gt;alert(1)" in overview


@pytest.mark.parametrize(
    "path", ["/", "/task/1/1", "/done", "/admin", "/admin/tasks/1", "/admin/export/rankings.jsonl"]
)
def test_pages_need_an_invitation(desk, path):
    desk.add(ranking_tasks(1))
    desk.client("ann").get("/")
    assert Client("127.0.0.1", desk.port).get(path).status == 403


def test_a_labeler_is_no_administrator_and_sees_no_task_of_another(desk):
    desk.add(ranking_tasks(2))
    ann, ben = desk.client("ann"), desk.client("ben")
    theirs = ann.get("/").path
    page = ben.get("/")
    assert ben.get(theirs).status == 404
    assert ben.post(theirs, csrf=page.csrf, action="skip").status == 404
    assert ben.post(f"{theirs}/draft", csrf=page.csrf).status == 404
    for path, form in (("labelers", {"name": "x", "group": "training"}), ("labelers/1", {"action": "admit"})):
        assert ben.post(f"/admin/{path}", csrf=page.csrf, **form).status == 403


def test_an_invitation_must_be_signed_and_is_revoked_by_a_new_one(desk):
    link = desk.invite("ann")
    token = link.rpartition("/")[2]
    for forged in (
        token[:-1],
        token[:-2] + "xx",
        security.sign("another secret", "admin"),
        "x",
        security.sign(desks.SECRET, 1),
    ):
        assert Client("127.0.0.1", desk.port).get(f"/join/{forged}").status == 403
    ann, admin = desk.client("ann"), desk.admin()
    page = admin.post("/admin/labelers/1", csrf=admin.get("/admin").csrf, action="invite")
    assert ann.get("/").status == 403
    assert Client("127.0.0.1", desk.port).get(link).status == 403
    new = re.search(r'value="http://[^/]+(/join/[^"]+)"', page.text)[1]
    assert Client("127.0.0.1", desk.port).get(new).status == 200


def test_a_form_needs_the_token_of_its_session(desk):
    desk.add(ranking_tasks(2))
    ann, ben = desk.client("ann"), desk.client("ben")
    page, other = ann.get("/"), ben.get("/")
    for csrf in ("", "wrong", other.csrf):
        form = rank(page, {text: text for text in page.answers}) | {"csrf": csrf}
        assert ann.post(page.path, **form).status == 403
        assert ann.post(f"{page.path}/draft", **form).status == 403
    assert desk.export() == ""


def test_every_response_has_the_policy(desk):
    desk.add(ranking_tasks(1))
    ann = desk.client("ann")
    for path in ("/", "/static/desk.js", "/nowhere", "/admin"):
        headers = ann.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in str(headers)
        assert headers["x-content-type-options"] == "nosniff"
    text = ann.get("/").text
    assert not re.search(r"<script(?! type=\"module\" src=)| on\w+=|style=|javascript:", text)


def test_the_session_cookie_is_not_for_scripts(desk):
    response = Client("127.0.0.1", desk.port).send("GET", desk.invite("ann"))
    assert "httponly" in response.headers["set-cookie"] and "samesite=lax" in response.headers["set-cookie"]


def test_behind_https_the_cookie_is_secure_and_links_name_the_public_address(tmp_path):
    with desks.serve(f"sqlite:///{tmp_path}/labels.sqlite", url="https://label.example.org") as desk:
        link = desk.invite("ann")
        assert "secure" in Client("127.0.0.1", desk.port).send("GET", link).headers["set-cookie"].split("; ")
        assert f'value="https://label.example.org{link}"' in desk.admin().get("/admin").text


@pytest.mark.parametrize("path", ["/task/99999999999999999999/1", "/task/2147483648/1", "/task/1/2147483648"])
def test_numbers_beyond_the_database_are_not_found(desk, path):
    desk.add(ranking_tasks(1))
    ann = desk.client("ann")
    ann.get("/")
    assert ann.get(path).status == 404


def test_other_host_names_are_refused(desk):
    response = Client("127.0.0.1", desk.port).send("GET", desk.invite("ann"), headers={"host": "evil.example"}.items())
    assert response.status == 400


def test_large_requests_are_refused(tmp_path):
    with desks.serve(f"sqlite:///{tmp_path}/labels.sqlite", max_body=10_000) as desk:
        desk.add(ranking_tasks(1))
        ann = desk.client("ann")
        page = ann.get("/")
        assert ann.post(page.path, csrf=page.csrf, notes="x" * 20_000).status == 413
        assert ann.get("/").status == 200


def test_too_many_requests_of_one_client_are_refused_and_others_are_not(tmp_path):
    with desks.serve(f"sqlite:///{tmp_path}/labels.sqlite", rate=0.001, burst=8) as desk:
        ann, ben = desk.client("ann"), desk.client("ben")
        statuses = [ann.get("/static/icon.svg").status for _ in range(8)]  # after two pages
        assert statuses == [200] * 6 + [429] * 2
        assert ben.get("/done").status == 200


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "secret"
    secret = security.read_secret(path)
    assert secret == security.read_secret(path) and len(secret) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def label_at_once(desk):
    """Has 8 labelers at once rank 10 tasks that want two each."""
    desk.add([Task(kind="ranking", prompt=f"prompt {i}", answers=tuple(HOSTILE)) for i in range(10)], copies=2)
    clients = [desk.client(f"labeler {i}") for i in range(8)]

    def label(client):
        page = client.get("/")
        while page.path != "/done":
            page = client.post(page.path, **rank(page, {text: text for text in page.answers}))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(label, clients))
    found = [records.parse(line, Ranking) for line in desk.export().splitlines()]
    assert len(found) == len({(record.prompt, record.labeler) for record in found}) == 20
    assert set(collections.Counter(record.prompt for record in found).values()) == {2}
    assert all(record.responses == tuple(HOSTILE) for record in found)


def test_labelers_at_once_never_get_more_copies_than_are_wanted(desk):
    label_at_once(desk)


@postgres.needs_postgres
def test_labelers_at_once_in_postgres():
    with postgres.serve() as url, desks.serve(url) as desk:
        label_at_once(desk)
