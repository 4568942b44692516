"""The pages of labelers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from instructjax.labeling import labels, queue, security
from instructjax.labeling.queue import Assignment, Labeler
from instructjax.labeling.web import FLAG_LABELS, LETTERS, handler, render


def routes() -> list[Route]:
    """Lists the routes."""
    return [
        Route("/", handler(next_task)),
        Route("/join/{token}", handler(join)),
        Route("/done", handler(show_done)),
        Route("/task/{id:int}/{number:int}", handler(show_page), methods=["GET"]),
        Route("/task/{id:int}/{number:int}", handler(submit_page), methods=["POST"]),
        Route("/task/{id:int}/{number:int}/draft", handler(save_draft), methods=["POST"]),
    ]


def join(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Opens a session from an invitation."""
    value = security.unsign(request.app.state.settings.secret, request.path_params["token"])
    is_labeler = isinstance(value, list) and len(value) == 2
    if value != "admin" and (not is_labeler or queue.find_labeler(db, *value) is None):
        raise HTTPException(403, "This invitation is not valid, or no longer. Ask for a new one.")
    request.session.clear()
    request.session["admin" if value == "admin" else "labeler"] = True if value == "admin" else value
    return RedirectResponse("/admin" if value == "admin" else "/", 303)


def require_labeler(db: sa.Connection, request: Request) -> Labeler:
    """Returns the labeler of the session.

    Raises:
      HTTPException: 403 if there is none, or the invitation was revoked.
    """
    labeler = queue.find_labeler(db, *request.session.get("labeler", (0, "")))
    if labeler is None:
        raise HTTPException(403, "Open the link of your invitation to begin.")
    return labeler


def _require_page(db: sa.Connection, request: Request) -> tuple[Labeler, Assignment, int]:
    """Returns the labeler, the assignment and the number of the page of a request."""
    labeler = require_labeler(db, request)
    assignment = queue.find_assignment(db, request.path_params["id"], labeler)
    number = request.path_params["number"]
    if assignment is None or not 1 <= number <= len(assignment.pages):
        raise HTTPException(404, "Page not found.")
    return labeler, assignment, number


def next_task(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Leads to the first page that needs work."""
    return _lead_to_next(db, require_labeler(db, request))


def _lead_to_next(db: sa.Connection, labeler: Labeler) -> Response:
    found = queue.next_assignment(db, labeler)
    assignment = None if found is None else queue.find_assignment(db, found)
    if assignment is None:
        return RedirectResponse("/done", 303)
    number = labels.first_incomplete(assignment.task, assignment.order, assignment.contents) or len(assignment.pages)
    return RedirectResponse(f"/task/{assignment.id}/{number}", 303)


def show_done(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Says that there is nothing to do, and lists what was skipped."""
    labeler = require_labeler(db, request)
    return render(request, "done.html", labeler=labeler, given=queue.list_given(db, labeler))


def show_page(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Shows a page of a task."""
    return _render_page(db, request, *_require_page(db, request))


def _render_page(
    db: sa.Connection,
    request: Request,
    labeler: Labeler,
    assignment: Assignment,
    number: int,
    fault: str = "",
) -> Response:
    page, task = assignment.pages[number - 1], assignment.task
    place = queue.place_of(db, assignment, labeler)
    answers = [
        {
            "letter": LETTERS[shown],
            "text": task.answers[index],
            "quality": assignment.contents.get(f"rate-{index}", {}).get("overall_quality"),
            "rank": (assignment.contents.get("rank", {}).get("ranks") or {index: None})[index],
        }
        for shown, index in enumerate(assignment.order)
    ]
    before = f"/task/{assignment.id}/{number - 1}" if number > 1 else place["before"] and f"/task/{place['before']}/1"
    return render(
        request,
        f"{page.action}.html",
        422 if fault else 200,
        labeler=labeler,
        assignment=assignment,
        task=task,
        answers=answers,
        answer=None if page.answer is None else answers[number - 1],
        content=assignment.contents.get(page.key, {}),
        flags=FLAG_LABELS,
        letters="abcdefghijk",
        qualities=labels.QUALITIES,
        place=place,
        before=before,
        number=number,
        fault=fault,
    )


def save_draft(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response:
    """Saves what is on a page, unless it has been submitted meanwhile."""
    _, assignment, number = _require_page(db, request)
    page = assignment.pages[number - 1]
    content = labels.parse(page, form, assignment.order)
    submitted = (assignment.label or {}).get(page.key, {})
    if {**content, "seconds": 0} != {**submitted, "seconds": 0}:
        queue.save_draft(db, assignment, page, content)
    return Response(status_code=204)


def submit_page(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response:
    """Submits a page or skips the task, and leads to what is next."""
    labeler, assignment, number = _require_page(db, request)
    page = assignment.pages[number - 1]
    content = labels.parse(page, form, assignment.order)
    if form.get("action") == "skip":
        queue.skip(db, queue.save_draft(db, assignment, page, content))
    elif fault := labels.find_missing(page, content):
        assignment = queue.save_draft(db, assignment, page, content)
        return _render_page(db, request, labeler, assignment, number, fault)
    elif (following := queue.submit(db, assignment, page, content)) is not None:
        return RedirectResponse(f"/task/{assignment.id}/{following}", 303)
    return _lead_to_next(db, labeler)
