"""Labels as people give them on the pages of a task: what is read from a form, and what is still missing.

What is saved of a page is its content, a JSON object that refers to answers by their index in the task, not by the
place where they were shown:

    write   {"response": text}
    rate    {"overall_quality": 1 to 7 or None, FLAG: bool for each flag of Table 3}
    rank    {"ranks": [K numbers from 1, the best, or None]}

Each has "notes" and "seconds", too. A draft or label is {the page's key: its content}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.labeling.tasks import Page, Task
from instructjax.records import TABLE3_FLAGS

QUALITIES = range(1, 8)  # Likert, Table 3
MAX_TEXT = 50_000  # characters of a response or a note
MAX_SECONDS = 24 * 60 * 60  # on one page

Content = Mapping[str, Any]


def parse(page: Page, form: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Reads a form, which may be incomplete. Values that are not allowed count as missing.

    Args:
      page: the page that the form is on.
      form: its fields: "response", or "overall_quality" and flags, or "rank-0" to "rank-(K - 1)" by place.
      order: the indexes of the answers in the order in which they are shown.
    """
    common = {"notes": _text(form.get("notes")), "seconds": _seconds(form.get("seconds"))}
    if page.action == "write":
        return {"response": _text(form.get("response")), **common}
    if page.action == "rate":
        quality = _number(form.get("overall_quality"), QUALITIES)
        return {"overall_quality": quality, **{name: name in form for name in TABLE3_FLAGS}, **common}
    ranks: list[int | None] = [None] * len(order)
    for place, index in enumerate(order):
        ranks[index] = _number(form.get(f"rank-{place}"), range(1, len(order) + 1))
    return {"ranks": ranks, **common}


def find_missing(page: Page, content: Content | None) -> str:
    """Returns what a page still needs before it can be submitted, as a sentence; "" if nothing."""
    content = content or {}
    if page.action == "write":
        response = content.get("response", "")
        if len(response) > MAX_TEXT:
            return f"The response has {len(response)} characters; at most {MAX_TEXT} are kept."
        return "" if response.strip() else "Write a response first."
    if page.action == "rate":
        return "" if content.get("overall_quality") else "Choose the overall quality, from 1 to 7."
    missing = [rank for rank in content.get("ranks", [None]) if rank is None]
    return f"Give every answer a rank; {len(missing)} to go." if missing else ""


def first_incomplete(task: Task, order: Sequence[int], contents: Mapping[str, Content]) -> int | None:
    """Returns the number of the first page, from 1, that needs more; None if the label is complete."""
    for number, page in enumerate(task.pages(order), start=1):
        if find_missing(page, contents.get(page.key)):
            return number
    return None


def scores(ranks: Sequence[int]) -> list[float]:
    """Converts ranks (1 is the best) to the scores of a Ranking: 1 for the worst level, equal for ties."""
    levels = sorted(set(ranks), reverse=True)
    return [1.0 + levels.index(rank) for rank in ranks]


def _text(value: Any) -> str:
    # Browsers send line breaks as CR LF. One character more than is allowed, so that `find_missing` sees it.
    return value.replace("\r\n", "\n")[: MAX_TEXT + 1] if isinstance(value, str) else ""


def _number(value: Any, allowed: range) -> int | None:
    """Returns a number that is written in ASCII digits, if it is allowed."""
    is_number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 3
    return int(value) if is_number and int(value) in allowed else None


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return 0.0
    return round(seconds, 1) if 0 <= seconds <= MAX_SECONDS else 0.0
