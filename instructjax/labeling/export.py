"""Labels as records, and screening scores.

    demonstration           {"prompt", "response", "labeler", ...}
    rating                  {"prompt", "responses", "scores", "metadata", "labeler", ...}; scores are the qualities
    ranking, comparison     {"prompt", "responses", "scores", "labeler", ...}, with "metadata" from a comparison

The other fields of the task's record are kept, such as "user", "models" and "split". "task", "seconds" and "notes" are
added.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from instructjax import records
from instructjax.labeling import labels
from instructjax.labeling.database import ASSIGNMENTS, LABELERS, TASKS
from instructjax.labeling.labels import Content
from instructjax.labeling.tasks import Task
from instructjax.records import TABLE3_FLAGS, Demonstration, Ranking, Record

# By the name of the exported file: the kinds of tasks, and the group of labelers.
FILES = {
    "demonstrations.jsonl": (("demonstration",), "training"),
    "ratings.jsonl": (("rating",), "training"),
    "rankings.jsonl": (("ranking", "comparison"), "training"),
    "heldout_demonstrations.jsonl": (("demonstration",), "heldout"),
    "heldout_ratings.jsonl": (("rating",), "heldout"),
    "heldout_rankings.jsonl": (("ranking", "comparison"), "heldout"),
}

# Sensitive content and harm, of Table 3: what screening compares (appendix B.1, 1).
SENSITIVE_FLAGS = (
    "sexual_content",
    "violent_content",
    "encourages_violence",
    "denigrates_protected_class",
    "harmful_advice",
)


def read_records(db: sa.Connection, name: str) -> Iterator[Record]:
    """Yields the records of one of FILES, in the order of tasks. Screening tasks are left out."""
    kinds, group = FILES[name]
    query = (
        sa.select(TASKS.c.id, TASKS.c.kind, TASKS.c.content, ASSIGNMENTS.c.label, LABELERS.c.name)
        .select_from(TASKS.join(ASSIGNMENTS).join(LABELERS))
        .where(TASKS.c.kind.in_(kinds), TASKS.c.group == group, ASSIGNMENTS.c.status == "done")
        .order_by(TASKS.c.id, ASSIGNMENTS.c.id)
    )
    for row in db.execute(query):
        yield make_record(row.id, Task(kind=row.kind, **row.content), row.label, row.name)


def make_record(task_id: int, task: Task, label: Mapping[str, Content], labeler: str) -> Record:
    """Makes a record of one label."""
    rated = [label[f"rate-{index}"] for index in range(len(task.answers)) if f"rate-{index}" in label]
    contents = [label[page.key] for page in task.pages(range(len(task.answers)))]
    fields: dict[str, Any] = {
        **{name: value for name, value in task.fields.items() if name not in ("scores", "metadata", "response")},
        "prompt": task.prompt,
        "labeler": labeler,
        "task": task_id,
        "seconds": round(sum(content["seconds"] for content in contents), 1),
    }
    if any(content["notes"] for content in contents):
        fields["notes"] = [content["notes"] for content in contents]
    if task.kind == "demonstration":
        return records.from_dict({**fields, "response": label["write"]["response"]}, Demonstration)
    fields["responses"] = list(task.answers)
    if rated:
        names = ("overall_quality", *TABLE3_FLAGS)
        fields["metadata"] = [{name: content[name] for name in names} for content in rated]
    if "rank" in label:
        fields["scores"] = labels.scores(label["rank"]["ranks"])
    else:
        fields["scores"] = [float(content["overall_quality"]) for content in rated]
    return records.from_dict(fields, Ranking)


def count_conflicts(rankings: Iterable[Sequence[float]]) -> tuple[int, int]:
    """Counts how often two labelers order a pair of answers differently.

    Args:
      rankings: the scores of the same K answers, by each labeler.

    Returns:
      (pairs that two labelers order in opposite ways, pairs that both order), over all pairs of labelers.
    """
    opposite = ordered = 0
    for one, other in itertools.combinations(rankings, 2):
        for i, j in itertools.combinations(range(len(one)), 2):
            product = (one[i] - one[j]) * (other[i] - other[j])
            opposite += product < 0
            ordered += product != 0
    return opposite, ordered


def screening_scores(db: sa.Connection, labeler: int) -> dict[str, float | None]:
    """Computes a labeler's scores on the screening tasks (appendix B.1).

    Returns:
      "sensitive": the share of answers whose sensitive content was flagged as in the right answer; "ranking": the share
      of pairs that are ordered as in the right answer, among pairs that neither ties; "demonstrations": the mean score
      that administrators gave, 1 to 7. None if there is nothing to compare. The paper's soft cutoffs are 0.75, 0.75
      and 6.
    """
    query = (
        sa.select(TASKS.c.id, TASKS.c.kind, TASKS.c.content, ASSIGNMENTS.c.label, ASSIGNMENTS.c.score)
        .select_from(TASKS.join(ASSIGNMENTS))
        .where(TASKS.c.group == "screening", ASSIGNMENTS.c.labeler == labeler, ASSIGNMENTS.c.status == "done")
    )
    alike: list[bool] = []
    given: list[int] = []
    opposite = ordered = 0
    for row in db.execute(query):
        if row.kind == "demonstration":
            given += [] if row.score is None else [row.score]
            continue
        gold = row.content["gold"]
        found = make_record(row.id, Task(kind=row.kind, **row.content), row.label, "")
        assert isinstance(found, Ranking)
        if found.metadata is not None and "metadata" in gold:
            alike += [
                _is_sensitive(x) == _is_sensitive(y) for x, y in zip(found.metadata, gold["metadata"], strict=True)
            ]
        if "rank" in row.label:
            differ, both = count_conflicts([found.scores, gold["scores"]])
            opposite, ordered = opposite + differ, ordered + both
    return {
        "sensitive": sum(alike) / len(alike) if alike else None,
        "ranking": 1 - opposite / ordered if ordered else None,
        "demonstrations": sum(given) / len(given) if given else None,
    }


def _is_sensitive(flags: Mapping[str, Any]) -> bool:
    return any(flags.get(name) for name in SENSITIVE_FLAGS)
