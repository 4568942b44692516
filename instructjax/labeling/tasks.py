"""Tasks for labelers: what a file of records asks them to do.

A line of a file is a prompt, with the answers to judge unless the task is to write one:

    {"prompt": "..."}                              demonstration
    {"prompt": "...", "responses": [K texts]}      rating, ranking, comparison

Other fields, such as "user", "models" and "split", are kept for the records that labelers make. They are not shown.
Screening tasks carry the right answer in the fields of a Ranking: "scores", "metadata" or both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from instructjax import records
from instructjax.errors import RecordError
from instructjax.records import Prompt, Ranking

KINDS = ("demonstration", "rating", "ranking", "comparison")
GROUPS = ("screening", "training", "heldout")
MAX_ANSWERS = 9  # the paper's K, and the number keys of a keyboard


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of a task.

    Attributes:
      action: "write" a response, "rate" one answer, or "rank" all.
      answer: the index of the answer to rate; None for the other actions.
    """

    action: str
    answer: int | None = None

    @property
    def key(self) -> str:
        """Names what is saved from this page."""
        return self.action if self.answer is None else f"{self.action}-{self.answer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What one labeler does with one prompt.

    Attributes:
      kind: "demonstration": write a response; "rating": rate each answer (Table 3); "ranking": rank all answers;
        "comparison": rate each answer, then rank all, as in the paper (Figure 12).
      prompt: the prompt.
      answers: the K answers; () for a demonstration.
      fields: the other fields of the record.
      gold: the right "scores" and "metadata" of a screening task (appendix B.1); {} for other tasks.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gold: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def pages(self, order: Iterable[int]) -> list[Page]:
        """Lists the pages of this task, for answers that are shown in the given order."""
        rated = [Page("rate", index) for index in order] if self.kind in ("rating", "comparison") else []
        last = {"demonstration": [Page("write")], "rating": []}.get(self.kind, [Page("rank")])
        return rated + last

    def content(self) -> dict[str, Any]:
        """Returns all fields but the kind as a JSON object; `Task(kind=kind, **content)` inverts it."""
        return {"prompt": self.prompt, "answers": list(self.answers), "fields": self.fields, "gold": self.gold}

    def digest(self) -> str:
        """Returns a hash of the content, which is equal for equal tasks."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()


def read(path: epath.PathLike, kind: str, is_screening: bool = False) -> list[Task]:
    """Reads a .jsonl or .jsonl.gz file of tasks.

    Raises:
      RecordError: the file cannot be read, or some of its lines are not tasks of this kind; see `parse`.
    """
    path = epath.Path(path)
    if not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise RecordError(f"{path}: expected a file that ends in .jsonl or .jsonl.gz")
    return parse(records.read_lines(path, Prompt), kind, is_screening)


def parse(lines: Iterable[tuple[str, str | RecordError]], kind: str, is_screening: bool = False) -> list[Task]:
    """Reads lines as tasks.

    Args:
      lines: (the place to name in an error, the line or what is wrong with it).
      kind: one of KINDS.
      is_screening: whether the tasks are scored against the right answer that they carry.

    Raises:
      RecordError: "FILE:LINE: field: expected ..., found ...", for the first lines that are not tasks.
    """

    def found() -> Iterator[Task | RecordError]:
        for where, line in lines:
            try:
                if isinstance(line, RecordError):
                    raise line
                yield _task(records.parse(line, Prompt, where), kind, is_screening)
            except RecordError as error:
                yield error

    return list(records.valid(found()))


def _task(record: Prompt, kind: str, is_screening: bool) -> Task:
    fields = json.loads(records.to_json(record))
    prompt = fields.pop("prompt")
    if not prompt.strip():
        raise RecordError(f"{record.where}: prompt: expected text, found none")
    if kind == "demonstration":
        return Task(kind=kind, prompt=prompt, fields=fields)
    answers = fields.pop("responses", None)
    at_least = 1 if kind == "rating" else 2
    if not isinstance(answers, list) or not at_least <= len(answers) <= MAX_ANSWERS:
        found = f"{len(answers)}" if isinstance(answers, list) else records.show(answers)
        raise RecordError(
            f"{record.where}: responses: expected {at_least} to {MAX_ANSWERS} answers for a {kind}, found {found}"
        )
    for index, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise RecordError(f"{record.where}: responses[{index}]: expected text, found {records.show(answer)}")
    gold = _gold(fields, prompt, answers, kind, record.where) if is_screening else {}
    return Task(kind=kind, prompt=prompt, answers=tuple(answers), fields=fields, gold=gold)


def _gold(fields: dict[str, Any], prompt: str, answers: list[str], kind: str, where: str) -> dict[str, Any]:
    """Takes the right answer out of the fields of a screening task."""
    needed = {"rating": ("metadata",), "ranking": ("scores",), "comparison": ("scores", "metadata")}[kind]
    gold: dict[str, Any] = {name: fields.pop(name) for name in ("scores", "metadata") if name in fields}
    for name in needed:
        if name not in gold:
            raise RecordError(f"{where}: {name}: expected the right answer of a screening {kind}, found none")
    # Validates both; a rating may have no scores.
    records.from_dict({"prompt": prompt, "responses": answers, "scores": [0.0] * len(answers), **gold}, Ranking, where)
    return gold
