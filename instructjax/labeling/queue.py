"""The queue: which task a labeler gets, and what happens to it. Every function runs in the caller's transaction."""

from __future__ import annotations

import dataclasses
import random
import secrets
import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from instructjax.labeling import labels
from instructjax.labeling.database import ASSIGNMENTS, LABELERS, TASKS
from instructjax.labeling.labels import Content
from instructjax.labeling.tasks import Page, Task

LOCK_TRIES, LOCK_SECONDS = 50, 0.02  # to find a task that is not locked
_KEY_BYTES = 12
MAX_NAME = 64  # characters


@dataclasses.dataclass(frozen=True)
class Labeler:
    """A person who labels.

    Attributes:
      id: of the row.
      name: unique; the "labeler" of exported records.
      group: "training" or "heldout".
      key: what an invitation carries, so that a new key revokes the old link.
      admitted: to tasks other than screening tasks.
      active: whether the invitation still holds.
    """

    id: int
    name: str
    group: str
    key: str
    admitted: bool
    active: bool


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A task that a labeler has been given.

    Attributes:
      id: of the row.
      labeler: the labeler's id.
      task: the task.
      task_id: its id.
      order: the indexes of the answers in the order in which they are shown.
      status: "open", "done" or "skipped".
      draft: contents by page that have not been submitted; None if there are none.
      label: contents by page that have been submitted; None before.
    """

    id: int
    labeler: int
    task: Task
    task_id: int
    order: list[int]
    status: str
    draft: dict[str, Content] | None
    label: dict[str, Content] | None

    @property
    def pages(self) -> list[Page]:
        """Lists the pages of the task in the order of its answers."""
        return self.task.pages(self.order)

    @property
    def contents(self) -> dict[str, Content]:
        """Returns what the pages show: the draft over the label."""
        return {**(self.label or {}), **(self.draft or {})}


def add_tasks(db: sa.Connection, tasks: Iterable[Task], group: str, copies: int | None) -> int:
    """Adds tasks that are not there yet.

    Args:
      db: the transaction.
      tasks: in the order in which labelers get them.
      group: the labelers who get them: "training" or "heldout"; "screening" for all new training labelers.
      copies: the number of labelers per task; None for all.

    Returns:
      The number of tasks that were added. Equal tasks of a group are added once.
    """
    known = {tuple(row) for row in db.execute(sa.select(TASKS.c.digest, TASKS.c.kind).where(TASKS.c.group == group))}
    rows = []
    for task in tasks:
        key = (task.digest(), task.kind)
        if key not in known:
            known.add(key)
            row = {"digest": key[0], "kind": task.kind, "group": group, "content": task.content()}
            rows.append({**row, "copies": copies, "taken": 0, "wanted": True})
    if rows:
        db.execute(TASKS.insert(), rows)
    return len(rows)


def add_labeler(db: sa.Connection, name: str, group: str) -> Labeler:
    """Adds a labeler, or returns the one of this name. Training labelers are admitted if there is no screening.

    Held-out labelers are not screened (appendix B.1).
    """
    found = db.execute(sa.select(LABELERS).where(LABELERS.c.name == name)).first()
    if found is None:
        is_screened = group == "training" and bool(
            db.scalar(sa.select(sa.func.count()).select_from(TASKS).where(TASKS.c.group == "screening"))
        )
        row = {"name": name, "group": group, "key": secrets.token_urlsafe(_KEY_BYTES), "admitted": not is_screened}
        db.execute(LABELERS.insert().values(**row, active=True))
        found = db.execute(sa.select(LABELERS).where(LABELERS.c.name == name)).one()
    return Labeler(*found)


def find_name_fault(db: sa.Connection, name: str) -> str:
    """Returns what is wrong with the name of a new labeler, as a sentence; "" if nothing."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        return f"A name has 1 to {MAX_NAME} printable characters."
    is_taken = db.execute(sa.select(LABELERS.c.id).where(LABELERS.c.name == name)).first() is not None
    return "A labeler already has this name." if is_taken else ""


def find_labeler(db: sa.Connection, labeler: int, key: str) -> Labeler | None:
    """Returns an active labeler whose invitation has this key, and keeps the row locked until the transaction ends."""
    query = sa.select(LABELERS).where(LABELERS.c.id == labeler, LABELERS.c.key == key, LABELERS.c.active)
    found = db.execute(query.with_for_update()).first()
    return None if found is None else Labeler(*found)


def change_labeler(db: sa.Connection, labeler: int, action: str) -> None:
    """Changes a labeler's state.

    Args:
      db: the transaction.
      labeler: the id.
      action: "admit"; "invite", which replaces the invitation; or "dismiss", which revokes it and gives the open
        tasks to others.
    """
    changes: dict[str, dict[str, Any]] = {
        "admit": {"admitted": True},
        "invite": {"key": secrets.token_urlsafe(_KEY_BYTES), "active": True},
        "dismiss": {"active": False},
    }
    db.execute(LABELERS.update().where(LABELERS.c.id == labeler).values(**changes[action]))
    if action == "dismiss":
        is_open = (ASSIGNMENTS.c.labeler == labeler) & (ASSIGNMENTS.c.status == "open")
        for (task,) in db.execute(sa.select(ASSIGNMENTS.c.task).where(is_open)).all():
            _count(db, task, -1)
        db.execute(ASSIGNMENTS.delete().where(is_open))


def next_assignment(db: sa.Connection, labeler: Labeler) -> int | None:
    """Returns the labeler's open assignment, or one to a task that wants more labelers; None if there is neither."""
    own = (ASSIGNMENTS.c.labeler == labeler.id) & (ASSIGNMENTS.c.status == "open")
    found = db.scalar(sa.select(sa.func.min(ASSIGNMENTS.c.id)).where(own))
    if found is not None:
        return int(found)
    task = _lock_task(db, labeler)
    if task is None:
        return None
    _count(db, task.id, +1)
    order = list(range(len(task.content["answers"])))
    random.SystemRandom().shuffle(order)
    row = {"task": task.id, "labeler": labeler.id, "order": order, "status": "open"}
    return int(db.execute(ASSIGNMENTS.insert().values(**row).returning(ASSIGNMENTS.c.id)).scalar_one())


def find_assignment(db: sa.Connection, assignment: int, labeler: Labeler | None = None) -> Assignment | None:
    """Returns an assignment; None if there is none of this id, or it is not this labeler's."""
    query = sa.select(ASSIGNMENTS, TASKS.c.kind, TASKS.c.content).join(TASKS).where(ASSIGNMENTS.c.id == assignment)
    if labeler is not None:
        query = query.where(ASSIGNMENTS.c.labeler == labeler.id)
    row = db.execute(query).first()
    if row is None:
        return None
    task = Task(kind=row.kind, **{**row.content, "answers": tuple(row.content["answers"])})
    return Assignment(row.id, row.labeler, task, row.task, row.order, row.status, row.draft, row.label)


def own_assignments(db: sa.Connection, labeler: Labeler) -> list[int]:
    """Returns the ids of all tasks that the labeler has been given, in that order."""
    query = sa.select(ASSIGNMENTS.c.id).where(ASSIGNMENTS.c.labeler == labeler.id)
    return list(db.scalars(query.order_by(ASSIGNMENTS.c.id)))


def place_of(db: sa.Connection, assignment: Assignment, labeler: Labeler) -> dict[str, int | None]:
    """Returns "n" of "m": the place among the labeler's tasks, and their number; and the id of the task "before"."""
    ids = own_assignments(db, labeler)
    waiting = db.scalar(sa.select(sa.func.count()).select_from(TASKS).where(_is_available(labeler))) or 0
    n = ids.index(assignment.id)
    return {"n": n + 1, "m": len(ids) + waiting, "before": ids[n - 1] if n else None}


def list_given(db: sa.Connection, labeler: Labeler) -> list[dict[str, Any]]:
    """Returns the "id", "status", "kind" and "prompt" of all tasks that the labeler has been given."""
    query = (
        sa.select(ASSIGNMENTS.c.id, ASSIGNMENTS.c.status, TASKS.c.kind, TASKS.c.content)
        .join(TASKS)
        .where(ASSIGNMENTS.c.labeler == labeler.id)
        .order_by(ASSIGNMENTS.c.id)
    )
    return [
        {"id": row.id, "status": row.status, "kind": row.kind, "prompt": row.content["prompt"]}
        for row in db.execute(query)
    ]


def save_draft(db: sa.Connection, assignment: Assignment, page: Page, content: Content) -> Assignment:
    """Saves what is on a page before it is submitted."""
    draft = {**(assignment.draft or {}), page.key: content}
    db.execute(ASSIGNMENTS.update().where(ASSIGNMENTS.c.id == assignment.id).values(draft=draft))
    return dataclasses.replace(assignment, draft=draft)


def submit(db: sa.Connection, assignment: Assignment, page: Page, content: Content) -> int | None:
    """Saves a page. The last page, or any page of a task that is done, turns the draft into the label.

    Submitting the same page again changes nothing.

    Returns:
      The number of the page, from 1, that needs more before the task is done; None if the task is done.
    """
    assignment = save_draft(db, assignment, page, content)
    missing = labels.first_incomplete(assignment.task, assignment.order, assignment.contents)
    number = assignment.pages.index(page) + 1
    if assignment.label is None and number < len(assignment.pages):
        return number + 1 if missing is None else min(number + 1, missing)
    if missing is not None:
        return missing
    if assignment.status == "skipped":
        _count(db, assignment.task_id, +1)
    done = {"status": "done", "label": assignment.contents, "draft": None}
    db.execute(ASSIGNMENTS.update().where(ASSIGNMENTS.c.id == assignment.id).values(**done))
    return None


def skip(db: sa.Connection, assignment: Assignment) -> None:
    """Skips a task, which then goes to another labeler. A label that was submitted before is withdrawn."""
    if assignment.status != "skipped":
        _count(db, assignment.task_id, -1)
    skipped = {"status": "skipped", "label": None, "draft": assignment.contents or None}
    db.execute(ASSIGNMENTS.update().where(ASSIGNMENTS.c.id == assignment.id).values(**skipped))


def _is_available(labeler: Labeler) -> sa.ColumnElement[bool]:
    """Returns the condition that a task wants another labeler, and this one has not had it."""
    had = sa.select(ASSIGNMENTS.c.task).where(ASSIGNMENTS.c.labeler == labeler.id)
    return (
        (TASKS.c.group == (labeler.group if labeler.admitted else "screening"))
        & TASKS.c.wanted
        & TASKS.c.id.not_in(had)
    )


def _lock_task(db: sa.Connection, labeler: Labeler) -> sa.Row | None:
    """Returns the first task that is available, locked until the transaction ends; None if there is none.

    SQLite has one writer at a time, and no locks of rows.
    """
    query = sa.select(TASKS.c.id, TASKS.c.kind, TASKS.c.content).where(_is_available(labeler)).order_by(TASKS.c.id)
    query = query.limit(1)
    for _ in range(LOCK_TRIES):
        if (task := db.execute(query.with_for_update(skip_locked=True)).first()) is not None:
            return task
        if db.execute(query).first() is None:
            return None
        # All tasks that are left are being given to others, who may leave some. To wait for their locks could be to
        # wait for somebody who waits for ours.
        time.sleep(LOCK_SECONDS)
    return None


def _count(db: sa.Connection, task: int, change: int) -> None:
    taken = TASKS.c.taken + change
    wanted = TASKS.c.copies.is_(None) | (taken < TASKS.c.copies)
    db.execute(TASKS.update().where(TASKS.c.id == task).values(taken=taken, wanted=wanted))
