"""What the administrator's page shows: progress, time, screening and disagreements."""

from __future__ import annotations

import collections
import statistics
from typing import Any

import sqlalchemy as sa

from instructjax.labeling import export
from instructjax.labeling.database import ASSIGNMENTS, LABELERS, TASKS
from instructjax.labeling.tasks import Task
from instructjax.records import Ranking

MAX_DISAGREEMENTS = 20


def progress(db: sa.Connection) -> list[dict[str, Any]]:
    """Returns for each group and kind: the number of tasks, labels that are wanted (None for all), and labels."""
    query = (
        sa.select(
            TASKS.c.group,
            TASKS.c.kind,
            sa.func.count(sa.distinct(TASKS.c.id)).label("tasks"),
            sa.func.count(ASSIGNMENTS.c.id).label("labels"),
        )
        .select_from(
            TASKS.outerjoin(ASSIGNMENTS, (ASSIGNMENTS.c.task == TASKS.c.id) & (ASSIGNMENTS.c.status == "done"))
        )
        .group_by(TASKS.c.group, TASKS.c.kind)
        .order_by(TASKS.c.group, TASKS.c.kind)
    )
    wanted = {
        (group, kind): count
        for group, kind, count in db.execute(
            sa.select(TASKS.c.group, TASKS.c.kind, sa.func.sum(TASKS.c.copies)).group_by(TASKS.c.group, TASKS.c.kind)
        )
    }
    return [{**row._mapping, "wanted": wanted[row.group, row.kind]} for row in db.execute(query)]


def labelers(db: sa.Connection) -> list[dict[str, Any]]:
    """Returns for each labeler: the row, counts of "done" and "skipped", the median "seconds" a task, "screening"."""
    given = sa.select(ASSIGNMENTS.c.labeler, ASSIGNMENTS.c.status, ASSIGNMENTS.c.label)
    counts: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    seconds: dict[int, list[float]] = collections.defaultdict(list)
    for labeler, status, label in db.execute(given):
        counts[labeler][status] += 1
        if label:
            seconds[labeler].append(sum(content["seconds"] for content in label.values()))
    return [
        {
            **row._mapping,
            "done": counts[row.id]["done"],
            "skipped": counts[row.id]["skipped"],
            "seconds": statistics.median(seconds[row.id]) if seconds[row.id] else None,
            "screening": export.screening_scores(db, row.id),
        }
        for row in db.execute(sa.select(LABELERS).order_by(LABELERS.c.id))
    ]


def rankings(db: sa.Connection) -> list[Ranking]:
    """Returns all rankings by both groups."""
    found = [
        record for name in ("rankings.jsonl", "heldout_rankings.jsonl") for record in export.read_records(db, name)
    ]
    return [record for record in found if isinstance(record, Ranking)]


def disagreements(given: list[Ranking]) -> list[dict[str, Any]]:
    """Returns the tasks whose labelers order most pairs in opposite ways, with "opposite", "ordered" and "prompt"."""
    by_task: dict[int, list[Ranking]] = collections.defaultdict(list)
    for ranking in given:
        by_task[ranking.extra["task"]].append(ranking)
    found = []
    for task, ranked in by_task.items():
        opposite, ordered = export.count_conflicts([ranking.scores for ranking in ranked])
        if opposite:
            row: dict[str, Any] = {"task": task, "labelers": len(ranked), "opposite": opposite, "ordered": ordered}
            found.append({**row, "prompt": ranked[0].prompt})
    found.sort(key=lambda row: (-row["opposite"] / row["ordered"], -row["opposite"]))
    return found[:MAX_DISAGREEMENTS]


def labels_of(db: sa.Connection, task_id: int) -> tuple[Task, list[dict[str, Any]]] | None:
    """Returns a task, and for each of its labels: "id", "labeler", "label", "score"; None if there is no such task."""
    task = db.execute(sa.select(TASKS).where(TASKS.c.id == task_id)).first()
    if task is None:
        return None
    query = (
        sa.select(ASSIGNMENTS.c.id, LABELERS.c.name.label("labeler"), ASSIGNMENTS.c.label, ASSIGNMENTS.c.score)
        .select_from(ASSIGNMENTS.join(LABELERS))
        .where(ASSIGNMENTS.c.task == task_id, ASSIGNMENTS.c.status == "done")
        .order_by(ASSIGNMENTS.c.id)
    )
    return Task(kind=task.kind, **task.content), [dict(row._mapping) for row in db.execute(query)]
