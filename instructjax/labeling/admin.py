"""The administrator's pages: progress, labelers, agreement, disagreements, import and export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from instructjax import records
from instructjax.errors import RecordError
from instructjax.labeling import export, overview, queue, security, tasks
from instructjax.labeling.database import ASSIGNMENTS
from instructjax.labeling.labels import QUALITIES
from instructjax.labeling.web import FLAG_LABELS, LETTERS, handler, render

LABELER_GROUPS = ("training", "heldout")
MAX_COPIES = 100


def routes() -> list[Route]:
    """Lists the routes."""
    return [
        Route("/admin", handler(show), methods=["GET"]),
        Route("/admin/labelers", handler(add_labeler), methods=["POST"]),
        Route("/admin/labelers/{id:int}", handler(change_labeler), methods=["POST"]),
        Route("/admin/tasks", handler(add_tasks), methods=["POST"]),
        Route("/admin/tasks/{id:int}", handler(show_task), methods=["GET"]),
        Route("/admin/scores/{id:int}", handler(score), methods=["POST"]),
        Route("/admin/export/{name}", handler(download), methods=["GET"]),
    ]


def require_admin(request: Request) -> None:
    """Checks that the session is an administrator's.

    Raises:
      HTTPException: 403 if it is not.
    """
    if request.session.get("admin") is not True:
        raise HTTPException(403, "Open the administrator's link, which the desk prints when it starts.")


def show(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Callable[[], Response]:
    """Shows the overview."""
    require_admin(request)
    return _render_overview(db, request)


def _render_overview(db: sa.Connection, request: Request, fault: str = "", done: str = "") -> Callable[[], Response]:
    """Reads the overview, and returns the function that renders it.

    To measure agreement can take seconds, in which labelers must not wait for the database.
    """
    state = request.app.state
    url = state.settings.url or str(request.base_url).rstrip("/")
    rankings = overview.rankings(db)
    people = overview.labelers(db)
    for person in people:
        token = security.sign(state.settings.secret, [person["id"], person["key"]])
        person["link"] = f"{url}/join/{token}"
    progress = overview.progress(db)
    return lambda: render(
        request,
        "admin.html",
        422 if fault else 200,
        progress=progress,
        people=people,
        agreement=state.agreement(rankings),
        disagreements=overview.disagreements(rankings),
        files=export.FILES,
        kinds=tasks.KINDS,
        groups=tasks.GROUPS,
        labeler_groups=LABELER_GROUPS,
        fault=fault,
        done=done,
    )


def add_labeler(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response | Callable[[], Response]:
    """Adds a labeler, whose invitation is then in the overview."""
    require_admin(request)
    name = str(form.get("name", "")).strip()
    if fault := queue.find_name_fault(db, name):
        return _render_overview(db, request, fault)
    if form.get("group") not in LABELER_GROUPS:
        return _render_overview(db, request, "Choose a group for the labeler.")
    queue.add_labeler(db, name, form["group"])
    return RedirectResponse("/admin#labelers", 303)


def change_labeler(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response:
    """Admits, dismisses or invites a labeler again."""
    require_admin(request)
    if form.get("action") not in ("admit", "invite", "dismiss"):
        raise HTTPException(422, "Expected the action admit, invite or dismiss.")
    queue.change_labeler(db, request.path_params["id"], form["action"])
    return RedirectResponse("/admin#labelers", 303)


def add_tasks(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response | Callable[[], Response]:
    """Adds the tasks of an uploaded file."""
    require_admin(request)
    file, kind, group, copies = (form.get(name) for name in ("file", "kind", "group", "copies"))
    if not isinstance(file, UploadFile) or kind not in tasks.KINDS or group not in tasks.GROUPS:
        return _render_overview(db, request, "Choose a file, a kind and a group.")
    if not (
        isinstance(copies, str)
        and copies.isascii()
        and copies.isdecimal()
        and len(copies) < 4
        and 1 <= int(copies) <= MAX_COPIES
    ):
        return _render_overview(db, request, f"Expected 1 to {MAX_COPIES} labelers per task.")

    def lines() -> Iterator[tuple[str, str | RecordError]]:
        for number, line in enumerate(file.file, start=1):
            where = f"{file.filename}:{number}"
            try:
                if line.strip():
                    yield where, line.decode()
            except UnicodeDecodeError as error:
                yield where, RecordError(f"{where}: expected UTF-8, found {error.reason}")

    is_screening = group == "screening"
    try:
        found = tasks.parse(lines(), str(kind), is_screening)
    except RecordError as error:
        return _render_overview(db, request, str(error))
    count = queue.add_tasks(db, found, str(group), None if is_screening else int(copies))
    return _render_overview(db, request, done=f"{file.filename}: {count} new tasks of {len(found)}.")


def show_task(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Shows all labels of a task side by side."""
    require_admin(request)
    found = overview.labels_of(db, request.path_params["id"])
    if found is None:
        raise HTTPException(404, "Task not found.")
    task, given = found
    return render(
        request,
        "labels.html",
        task=task,
        given=given,
        flags=FLAG_LABELS,
        letters=LETTERS,
        qualities=QUALITIES,
        number=request.path_params["id"],
    )


def score(db: sa.Connection, request: Request, form: Mapping[str, Any]) -> Response:
    """Scores a screening demonstration, 1 to 7 (appendix B.1, 3)."""
    require_admin(request)
    if form.get("score", "") not in [str(value) for value in QUALITIES]:
        raise HTTPException(422, "Expected a score from 1 to 7.")
    chosen = ASSIGNMENTS.c.id == request.path_params["id"]
    db.execute(ASSIGNMENTS.update().where(chosen).values(score=int(form["score"])))
    task = db.scalar(sa.select(ASSIGNMENTS.c.task).where(chosen))
    return RedirectResponse(f"/admin/tasks/{task}", 303)


def download(db: sa.Connection, request: Request, _: Mapping[str, Any]) -> Response:
    """Sends one of the exported files."""
    require_admin(request)
    name = request.path_params["name"]
    if name not in export.FILES:
        raise HTTPException(404, "File not found.")
    lines = "".join(records.to_json(record) + "\n" for record in export.read_records(db, name))
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(lines, media_type="application/jsonl; charset=utf-8", headers=headers)
