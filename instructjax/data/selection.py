"""Chooses the records from which something can be learned, and counts by reason those that are left out.

A record is left out if it carries no signal (an empty text, a ranking in which all answers tie) or does not fit (a
prompt or a response over the limit; appendix C). Of a ranking, an answer over the limit goes, and the ranking stays
while two answers remain that differ in score. Equal answers of a ranking get one score, the mean of theirs, because a
labeler cannot prefer a text to itself.

Always: records in = records used + records left out.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, overload

import numpy as np

from instructjax.data.layouts import Layout, lost_fault
from instructjax.errors import DataError
from instructjax.records import Demonstration, Prompt, R, Ranking, Text

# Why a record is left out.
EMPTY = "empty text"
TIED = "all answers tie"
REPEATED = "equal answers with different scores"
LONG_PROMPT = "prompt over data.max_prompt"
LONG_RESPONSE = "response over data.max_response"
LOST = "a character without a token"
REFUSED = "messages that the chat template cannot write"
MANY_ANSWERS = "more answers than comparisons.max_answers"


@dataclasses.dataclass(frozen=True)
class Choice(Generic[R]):
    """What is used of a record.

    Attributes:
      record: the record, or what remains of it; None if it is left out.
      reason: why the record, or a part of it, is left out; "" if it is used as it is.
      fault: the same as the text of an error, "FILE:LINE: field: expected ..., found ...".
      answers: the numbers of the answers that remain of a ranking, if some were left out.
    """

    record: R | None
    reason: str = ""
    fault: str = ""
    answers: tuple[int, ...] = ()


@dataclasses.dataclass
class Counts:
    """Counts the records of a split.

    Attributes:
      used: records that are used, whole or in part.
      left_out: records that are not, by reason.
      changed: records that are used in part, by reason.
    """

    used: int = 0
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def given(self) -> int:
        """Returns the number of records that came in."""
        return self.used + sum(self.left_out.values())

    def describe(self) -> str:
        """Returns why records are left out, the most frequent reason first: "all answers tie: 2, empty text: 1"."""
        return _list_reasons(self.left_out)

    def parts(self) -> str:
        """Returns why records are used in part; see `describe`."""
        return _list_reasons(self.changed)

    def add(self, choice: Choice) -> None:
        """Counts one record."""
        self.used += choice.record is not None
        if choice.reason:
            reasons = self.left_out if choice.record is None else self.changed
            reasons[choice.reason] = reasons.get(choice.reason, 0) + 1

    def then(self, later: Counts) -> Counts:
        """Returns the counts of two choices, the second one among the records that the first one used."""
        merged = (
            dict(collections.Counter(mine) + collections.Counter(theirs))
            for mine, theirs in ((self.left_out, later.left_out), (self.changed, later.changed))
        )
        return Counts(later.used, *merged)


def _list_reasons(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason}: {count}" for reason, count in ordered)


def choose_by_content(record: R, *, merge_equal_answers: bool = True) -> Choice[R]:
    """Returns what of a record carries a signal, whatever the tokenizer and the limits.

    Args:
      record: any record.
      merge_equal_answers: gives equal answers of a ranking the mean of their scores.
    """
    for field in ("text", "prompt", "response"):
        if not getattr(record, field, "text").strip():
            return Choice(None, EMPTY, f"{record.where}: {field}: expected text, found an empty one")
    if not isinstance(record, Ranking):
        return Choice(record)
    if (tied := _tied(record)).reason:
        return tied
    found: Any = with_equal_scores(record) if merge_equal_answers else record
    if found == record:
        return Choice(record)
    repeated = f"{record.where}: responses: expected one score for equal answers, found several"
    is_tied = len(set(found.scores)) < 2
    return Choice(None if is_tied else found, REPEATED, repeated)


def choose_by_length(record: R, layout: Layout, max_answers: int) -> tuple[Choice[R], int, tuple[int, ...]]:
    """Returns what of a record can be tokenized and fits into the limits.

    Args:
      record: any record; texts have no limit.
      layout: the tokenizer and the limits.
      max_answers: the maximum number of answers of a ranking.

    Returns:
      The choice, and the numbers of tokens of the prompt, separator included, and of each response, EOS included.
    """
    if isinstance(record, Text):
        return _without_lost(record, {"text": record.text}, layout) or Choice(record), 0, ()
    assert isinstance(record, Prompt | Demonstration | Ranking)
    answers = {}
    if isinstance(record, Demonstration):
        answers = {"response": record.response}
    if isinstance(record, Ranking):
        answers = {f"responses[{i}]": text for i, text in enumerate(record.responses)}
    if found := _without_lost(record, {"prompt": record.prompt, **answers}, layout):
        return found, 0, ()
    try:
        prompt = layout.count_prompt(record.prompt)
    except DataError as error:
        return Choice(None, REFUSED, f"{record.where}: prompt: {error}"), 0, ()
    lengths = tuple(map(layout.count_response, answers.values()))
    return _fitting(record, prompt, lengths, layout, max_answers), prompt, lengths


def _without_lost(record: Any, texts: Mapping[str, str], layout: Layout) -> Choice | None:
    """Returns that a record is left out, if the tokenizer would leave out a character of one of its texts."""
    lost = ((field, layout.tokenizer.lost(text)) for field, text in texts.items())
    return next((Choice(None, LOST, lost_fault(record.where, field, char)) for field, char in lost if char), None)


def _fitting(record: Any, prompt: int, lengths: Sequence[int], layout: Layout, max_answers: int) -> Choice:
    where, limit = record.where, layout.max_response
    if prompt > layout.max_prompt and not layout.cut_prompts:
        expected = f"expected at most {layout.max_prompt} tokens (data.max_prompt), found {prompt}"
        return Choice(None, LONG_PROMPT, f"{where}: prompt: {expected}")
    if isinstance(record, Ranking) and len(record.responses) > max_answers:
        expected = f"expected at most {max_answers} (comparisons.max_answers), found {len(record.responses)}"
        return Choice(None, MANY_ANSWERS, f"{where}: responses: {expected}")
    long = [i for i, length in enumerate(lengths) if length > limit]
    if not long:
        return Choice(record)
    field = f"responses[{long[0]}]" if isinstance(record, Ranking) else "response"
    fault = f"{where}: {field}: expected at most {limit} tokens (data.max_response), found {lengths[long[0]]}"
    kept = tuple(i for i in range(len(lengths)) if i not in long)
    if not isinstance(record, Ranking) or len({record.scores[i] for i in kept}) < 2:
        return Choice(None, LONG_RESPONSE, fault)
    return Choice(take_answers(record, kept), LONG_RESPONSE, fault, kept)


def take_answers(record: Ranking, kept: Sequence[int]) -> Ranking:
    """Returns a ranking with some of its answers."""
    metadata = record.metadata and tuple(record.metadata[i] for i in kept)
    return dataclasses.replace(
        record,
        responses=tuple(record.responses[i] for i in kept),
        scores=tuple(record.scores[i] for i in kept),
        metadata=metadata,
    )


def with_equal_scores(record: Ranking) -> Ranking:
    """Returns a ranking in which equal answers have the mean of their scores, and so tie."""
    given = collections.defaultdict(list)
    for response, score in zip(record.responses, record.scores, strict=True):
        given[response].append(score)
    means = {  # longdouble, in which the sum of the largest floats is finite
        response: float(np.mean(np.array(scores, np.longdouble)))
        for response, scores in given.items()
        if len(set(scores)) > 1
    }
    if not means:
        return record
    pairs = zip(record.responses, record.scores, strict=True)
    return dataclasses.replace(record, scores=tuple(means.get(response, score) for response, score in pairs))


def _tied(record: Ranking) -> Choice[Any]:
    if len(set(record.scores)) > 1:
        return Choice(record)
    found = f"found all {len(record.scores)} answers tied"
    return Choice(None, TIED, f"{record.where}: scores: expected at least one preference, {found}")


class Chosen(Sequence, Generic[R]):
    """A view of the records that are used. They are read when they are accessed."""

    def __init__(self, records: Sequence[R], left_out: Collection[int], answers: Mapping[int, Sequence[int]]):
        """Wraps records.

        Args:
          records: all records of a split.
          left_out: the indices of those that are left out.
          answers: the numbers of the answers that remain, by the index of their ranking, if some were left out.
        """
        self._records, self._answers = records, answers
        without = set(left_out)
        self._indices = [index for index in range(len(records)) if index not in without]

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> list[R]: ...

    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return [self._at(i) for i in self._indices[index]]
        return self._at(self._indices[index])

    def _at(self, index: int) -> Any:
        record: Any = self._records[index]
        return take_answers(record, self._answers[index]) if index in self._answers else record
