"""Tests of the pages in a headless Chromium: by mouse, by keyboard alone, on a phone, and for accessibility.

The pictures of docs/labeling.md are taken here. `INSTRUCTJAX_PICTURES=docs/assets/labeling` keeps them.
"""

import contextlib
import os
import pathlib
import re

import pytest

from instructjax import records
from instructjax.labeling import security
from instructjax.labeling.tasks import Task
from instructjax.records import Demonstration, Ranking
from tests.labeling import browsers, desks
from tests.labeling.browsers import PHONE, needs_browser, open_page
from tests.labeling.examples import FABLE, MOON, TASKS
from tests.labeling.test_safety import HOSTILE

pytestmark = [needs_browser, pytest.mark.slow]
PICTURES = os.environ.get("INSTRUCTJAX_PICTURES")


@pytest.fixture(scope="module")
def browser():
    with browsers.browser() as started:
        yield started


def submit(page, selector="#save"):
    """Clicks, and waits for the page that follows."""
    with page.expect_navigation():
        page.click(selector)


def press(page, *keys):
    """Presses keys, and waits for the page that the last one leads to."""
    for key in keys[:-1]:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press(keys[-1])


def wait_for_draft(page):
    page.get_by_text("Draft saved.").wait_for()


def shown(page):
    return page.locator("article .text").all_inner_texts()


def exported(desk, kind=Ranking, name="rankings.jsonl"):
    return [records.parse(line, kind) for line in desk.export(name).splitlines()]


def by_answer(record):
    return dict(zip(record.responses, record.scores, strict=True))


def picture(page, name):
    path = pathlib.Path(PICTURES) / f"{name}.png" if PICTURES else None
    assert len(page.screenshot(path=path, full_page=True)) > 5_000


def test_each_task_by_mouse(desk, browser):
    desk.add(TASKS)
    with open_page(browser, desk.url(desk.invite("ann"))) as page:
        page.fill("#response", FABLE)
        picture(page, "write")
        submit(page)
        for number, quality in enumerate((6, 2, 1, 4), start=1):
            page.click(f".quality label:nth-child({quality})")
            if number == 1:
                page.get_by_text("Expresses an opinion").click()
                picture(page, "rate")
            submit(page)
        answers = shown(page)
        for place, rank in enumerate((1, 3, 3, 2)):
            chip = page.locator(".chip", has_text="ABCD"[place])
            box = page.locator(f'.row[data-rank="{rank}"]').bounding_box()
            chip.hover()
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
            page.mouse.up()
        wait_for_draft(page)
        picture(page, "rank")
        submit(page)
        assert page.url.endswith("/done")
        picture(page, "done")
    (demonstration,) = exported(desk, Demonstration, "demonstrations.jsonl")
    assert demonstration.response == FABLE and demonstration.extra["seconds"] > 0
    (ranking,) = exported(desk)
    assert by_answer(ranking) == dict(zip(answers, (3, 1, 1, 2), strict=True))
    given = dict(zip(ranking.responses, ranking.metadata, strict=True))
    assert [given[text]["overall_quality"] for text in answers] == [6, 2, 1, 4]
    assert [given[text]["expresses_opinion"] for text in answers] == [True, False, False, False]


def test_each_task_by_keyboard_alone(desk, browser):
    desk.add(TASKS)
    with open_page(browser, desk.url(desk.invite("ann"))) as page:
        while page.evaluate("document.activeElement.id") != "response":
            page.keyboard.press("Tab")
        page.keyboard.type("A fox slept.")
        press(page, "Control+Enter")
        for quality in "6214":
            press(page, quality, "c", "c", "k", "Control+Enter")
        answers = shown(page)
        for key in ("2", "1", "2", "4", "ArrowUp", "ArrowUp", "0", "3"):  # C is taken back, then third
            page.keyboard.press(key)
        wait_for_draft(page)
        press(page, "Control+Enter")
    (ranking,) = exported(desk)
    assert by_answer(ranking) == dict(zip(answers, (3, 4, 2, 1), strict=True))
    assert all(flags["expresses_moral_judgment"] and not flags["hallucination"] for flags in ranking.metadata)


def test_an_arrow_key_chooses_a_rank_in_a_group_of_buttons(desk, browser):
    """Without our keys, radio buttons keep those of the browser."""
    desk.add([MOON_RANKING])
    with open_page(browser, desk.url(desk.invite("ann")), java_script_enabled=False) as page:
        answers = shown(page)
        for place in range(4):
            page.locator(f'[name="rank-{place}"]').first.focus()
            page.keyboard.press("Space")
            for _ in range(place):
                page.keyboard.press("ArrowRight")
        submit(page)
    (ranking,) = exported(desk)
    assert by_answer(ranking) == dict(zip(answers, (4, 3, 2, 1), strict=True))


MOON_RANKING = Task(kind="ranking", prompt=MOON.prompt, answers=MOON.answers)


def test_a_draft_survives_reload_and_a_crash_of_the_browser(desk, browser):
    desk.add([MOON_RANKING])
    link = desk.url(desk.invite("ann"))
    with open_page(browser, link) as page:
        before = shown(page)
        page.keyboard.press("3")
        page.fill("#notes", "not sure yet")
        wait_for_draft(page)
        page.reload()
        assert page.locator('.row[data-rank="3"] .chip').all_inner_texts() == ["A"]
    with open_page(browser, link) as page:  # another browser, without the session
        assert shown(page) == before
        assert page.locator('.row[data-rank="3"] .chip').all_inner_texts() == ["A"]
        assert page.input_value("#notes") == "not sure yet"
    assert exported(desk) == []


def test_looking_saves_nothing(desk, browser):
    desk.add([MOON_RANKING])
    with open_page(browser, desk.url(desk.invite("ann"))) as page:
        posts = []
        page.on("request", lambda request: posts.append(request.method) if request.method == "POST" else None)
        for key in ("ArrowDown", "Tab", "ArrowUp"):
            page.keyboard.press(key)
        page.wait_for_timeout(600)
        assert posts == []


def test_a_slow_draft_arrives_before_the_submission(desk, browser):
    desk.add([Task(kind="rating", prompt="p", answers=("a", "b"))])
    with open_page(browser, desk.url(desk.invite("ann"))) as page:
        held = []
        page.route("**/draft", lambda route: held.append(route))
        page.keyboard.press("1")
        page.wait_for_timeout(600)
        (draft,) = held  # on its way, with the quality 1
        for key in ("7", "Control+Enter", "Control+Enter"):
            page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert page.url.endswith("/1")
        with page.expect_navigation():
            draft.continue_()
        press(page, "7", "Control+Enter")
    (rating,) = exported(desk, name="ratings.jsonl")
    assert rating.scores == (7, 7)


def test_skip_and_back(desk, browser):
    desk.add([MOON_RANKING, Task(kind="demonstration", prompt="a fox")])
    with open_page(browser, desk.url(desk.invite("ann"))) as page:
        first = page.url
        submit(page, "#skip")
        assert "Task 2 of 2" in page.inner_text("header")
        page.fill("#response", "typed, then back")
        wait_for_draft(page)
        submit(page, "#back")
        assert page.url == first and page.inner_text("#status") == "Skipped."
        page.keyboard.press("1")
        page.goto(desk.url("/"))
        assert page.input_value("#response") == "typed, then back"


def test_two_labelers_at_once_get_different_tasks(desk, browser):
    desk.add([MOON_RANKING, Task(kind="ranking", prompt="second", answers=("a", "b"))])
    with (
        open_page(browser, desk.url(desk.invite("ann"))) as ann,
        open_page(browser, desk.url(desk.invite("ben"))) as ben,
    ):
        assert len(shown(ann)) == 4 and len(shown(ben)) == 2
        press(ben, "1", "1", "Enter")  # the focus is on the button once every answer has a rank
        press(ann, "4", "3", "2", "1", "Enter")
    assert sorted(len(record.responses) for record in exported(desk)) == [2, 4]


def test_hostile_texts_are_text(desk, browser):
    task = Task(kind="ranking", prompt=HOSTILE[0], answers=tuple(HOSTILE))
    desk.add([task, Task(kind="demonstration", prompt="\n".join(HOSTILE))])
    with open_page(browser, desk.url(desk.invite(HOSTILE[1])), PHONE) as page:
        assert len(shown(page)) == len(HOSTILE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        press(page, *"12345678", "Enter")
        page.fill("#response", HOSTILE[4])
        wait_for_draft(page)
        page.reload()
        assert page.input_value("#response") == HOSTILE[4]
        submit(page)
    with open_page(browser, desk.url(admin_link())) as page:
        assert HOSTILE[1] in page.inner_text("main")
        page.goto(desk.url("/admin/tasks/2"))
        assert HOSTILE[4] in page.inner_text("main")


def test_without_an_answer_of_the_desk_the_page_says_so_and_tries_again(desk, browser):
    desk.add([MOON_RANKING])
    with contextlib.suppress(AssertionError), open_page(browser, desk.url(desk.invite("ann"))) as page:  # logs errors
        for fail in (lambda route: route.abort(), lambda route: route.fulfill(status=503)):
            page.route("**/draft", fail)
            page.keyboard.press("1")
            page.get_by_text("not saved yet").wait_for()
            page.unroute("**/draft")
            wait_for_draft(page)
        page.reload()
        saved = page.locator('.row[data-rank="1"] .chip').all_inner_texts()
    assert saved == ["A", "B"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [browsers.DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_is_accessible_and_fits(desk, browser, viewport, scheme):
    from axe_playwright_python.sync_playwright import Axe

    desk.add(TASKS, copies=2)
    pages = []

    def check(page, name):
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        pages.append(name)
        if viewport == PHONE and scheme == "dark" and name in ("rate", "rank"):
            picture(page, f"{name}_phone")

    with open_page(browser, desk.url(desk.invite("ann")), viewport, color_scheme=scheme) as page:
        check(page, "write")
        page.fill("#response", FABLE)
        submit(page)
        page.keyboard.press("5")
        page.keyboard.press("a")
        page.click("summary") if viewport != PHONE else None
        check(page, "rate")
        press(page, "Control+Enter")
        for quality in "521":
            press(page, quality, "Control+Enter")
        for key in "12":
            page.keyboard.press(key)
        check(page, "rank")
        for key in "34":
            page.keyboard.press(key)
        press(page, "Control+Enter")
        check(page, "done")
    desk.client("ben").get("/")
    with open_page(browser, desk.url(admin_link()), viewport, color_scheme=scheme) as page:
        check(page, "admin")
        page.goto(desk.url("/admin/tasks/2"))
        check(page, "labels")
    assert pages == ["write", "rate", "rank", "done", "admin", "labels"]


def test_a_finger_drags_on_a_phone(desk, browser):
    desk.add([MOON_RANKING])
    with open_page(browser, desk.url(desk.invite("ann")), PHONE, has_touch=True, is_mobile=True) as page:
        page.locator(".board").scroll_into_view_if_needed()
        chip = page.locator(".chip", has_text="B").bounding_box()
        box = page.locator('.row[data-rank="2"]').bounding_box()
        touch = page.context.new_cdp_session(page)
        start = {"x": chip["x"] + 10, "y": chip["y"] + 10}
        end = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind, points in (("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert page.locator('.row[data-rank="2"] .chip').all_inner_texts() == ["B"]
        wait_for_draft(page)


def test_the_overview_shows_agreement_and_disagreements(desk, browser):
    tasks = [Task(kind="comparison", prompt=f"{MOON.prompt} ({i})", answers=MOON.answers) for i in range(8)]
    desk.add(tasks, copies=3)
    for number, name in enumerate(("ann", "ben", "cid")):
        client = desk.client(name)
        page = client.get("/")
        while page.path != "/done":
            prompt = int(re.search(r"\((\d)\)", page.text)[1])
            # The third labeler orders the answers to each prompt with a number below 3 the other way round.
            scores = {text: k * (-1 if number == 2 and prompt < 3 else 1) for k, text in enumerate(MOON.answers)}
            ranked = desks.rank(page, scores) | {"overall_quality": 3 + number, "seconds": 9 + number + prompt / 4}
            page = client.post(page.path, **ranked)
    with open_page(browser, desk.url(admin_link())) as page:
        text = page.inner_text("main")
        assert "75.0 %" in text  # of 8 prompts with 3 pairs of labelers, 3 prompts have 2 pairs that disagree
        assert page.locator("#disagreements").count() == 1 and text.count("12 of 18") == 3
        picture(page, "admin")
        submit(page, "#disagreements ~ .scroll a >> nth=0")
        assert page.locator("tbody tr").count() == 12
        picture(page, "labels")


def admin_link():
    return f"/join/{security.sign(desks.SECRET, 'admin')}"
