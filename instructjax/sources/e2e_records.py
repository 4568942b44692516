"""Reads the E2E NLG Challenge as demonstrations, rankings and prompts (Dusek et al. 2020).

The task is to state the facts of a meaning representation (MR), such as
`name[Blue Spice], eatType[coffee shop], area[city centre]`, in a sentence or two. People wrote
the references, and other people rated the outputs of five systems in direct comparison.

The data set is a folder of four files of JSON lines:

    dev_references.jsonl.gz, test_references.jsonl.gz
        {"prompt", "mr", "response"}
    quality.jsonl.gz, naturalness.jsonl.gz
        {"prompt", "mr", "item", "rater", "responses", "scores"}

In the files, "prompt" is an instruction followed by the MR. The records have the MR alone,
because the instruction is always the same sentence and a small model has little context. The
names of places are kept: there are about forty, and all of them occur in training.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from etils import epath

from instructjax import records
from instructjax.data import selection
from instructjax.errors import DataError, RecordError
from instructjax.records import Demonstration, Prompt, Ranking

REFERENCES = ("dev_references.jsonl.gz", "test_references.jsonl.gz")
ASPECTS = ("quality", "naturalness")

Judged = TypeVar("Judged", Demonstration, Ranking)

_SLOT = re.compile(r"([A-Za-z ]+)\[([^\[\]]*)\](?:,\s*|\s*$)")


@dataclasses.dataclass(frozen=True)
class E2ERecords:
    """The records of the data set. Every record has its split.

    Attributes:
      demonstrations: the references that people wrote.
      rankings: one per rater and item, without those whose answers are all tied.
      averaged: one per item with several raters, with the mean of their ranks.
      prompts: one per MR.
      tied: the number of rankings left out because the rater tied all answers.
    """

    demonstrations: tuple[Demonstration, ...]
    rankings: tuple[Ranking, ...]
    averaged: tuple[Ranking, ...]
    prompts: tuple[Prompt, ...]
    tied: int


def load(
    folder: epath.PathLike, aspects: Sequence[str] = ("quality",), validation: float = 0.1, test: float = 0.3
) -> E2ERecords:
    """Reads the data set and splits it by meaning representation.

    MRs that differ only in the names of places have the same pattern and are in the same split,
    so that no training input states the facts of a test input about another restaurant. Only
    patterns with rankings can be in the test split. The others cannot test a reward model, and
    their references are used for training.

    Raters of "quality" were asked to weigh content and fluency, and prefer longer answers.
    Raters of "naturalness" did not see the MR, and prefer shorter answers. With both aspects,
    the reward model learns from labelers who contradict each other.

    Args:
      folder: contains the files named above.
      aspects: one or both of ASPECTS. Rankings have their aspect in `extra["aspect"]`.
      validation: the share of patterns in the validation split.
      test: the share of ranked patterns in the test split.

    Returns:
      The records. `labeler` names the aspect and the rater, and `extra["item"]` the item.

    Raises:
      DataError: the folder or a file is missing, or an aspect is unknown.
      RecordError: a line is not a valid record; the error starts with "FILE:LINE: field".
    """
    folder = epath.Path(folder)
    for aspect in aspects:
        if aspect not in ASPECTS:
            raise DataError(f"E2E: aspects: expected some of {', '.join(ASPECTS)}, found {aspect!r}")
    files = (*REFERENCES, *(f"{aspect}.jsonl.gz" for aspect in aspects))
    for file in files:
        if not (folder / file).is_file():
            raise DataError(f"{folder}: expected the E2E files {', '.join(files)}, found no {file}")

    ratings = [_ratings(folder / f"{aspect}.jsonl.gz", aspect) for aspect in aspects]
    rankings = [ranking for kept, _ in ratings for ranking in kept]
    ranked = {pattern(ranking.prompt) for ranking in rankings}

    def with_split(record: Judged) -> Judged:
        """Returns the record with the split of its pattern."""
        key = pattern(record.prompt)
        split = records.split_of(Prompt(prompt=key), validation, test if key in ranked else 0.0)
        return dataclasses.replace(record, split=split)

    demonstrations = [with_split(record) for file in REFERENCES for record in _references(folder / file)]
    rankings = [with_split(ranking) for ranking in rankings]
    prompts = {record.prompt: Prompt(prompt=record.prompt, split=record.split) for record in demonstrations + rankings}
    return E2ERecords(
        demonstrations=tuple(demonstrations),
        rankings=tuple(rankings),
        averaged=tuple(average(rankings)),
        prompts=tuple(prompts.values()),
        tied=sum(tied for _, tied in ratings),
    )


def slots(mr: str) -> dict[str, str]:
    """Reads a meaning representation: {"name": "Blue Spice", "eatType": "coffee shop"}.

    Raises:
      DataError: the text is not a list of `slot[value]`, separated by commas.
    """
    found = _SLOT.findall(mr)
    if not found or _SLOT.sub("", mr):
        raise DataError(f"meaning representation: expected slot[value], slot[value], ..., found {mr[:60]!r}")
    return {slot.strip(): value for slot, value in found}


def pattern(mr: str) -> str:
    """Returns a meaning representation without the names of places, with its slots in alphabetical order."""
    facts = slots(mr) | {slot: "" for slot in ("name", "near") if slot in slots(mr)}
    return ", ".join(f"{slot}[{value}]" for slot, value in sorted(facts.items()))


def average(rankings: Iterable[Ranking]) -> list[Ranking]:
    """Averages the rankings of each item over its raters.

    Ranks are averaged instead of scores. Raters chose their own scales, some up to 100000, and
    would dominate a mean of scores.

    Args:
      rankings: rankings with `extra["aspect"]` and `extra["item"]`. The raters of an item rank
        the same answers in the same order.

    Returns:
      One ranking per item, with scores from 1 (every rater's worst) to K (every rater's best)
      and the number of raters in `extra["raters"]`. Items with one rater, and items whose
      answers all tie on average, are left out.
    """
    from scipy import stats  # its import takes a fourth of the time of all imports of a stage

    items = collections.defaultdict(list)
    for ranking in rankings:
        items[ranking.extra["aspect"], ranking.extra["item"], ranking.responses].append(ranking)
    averaged = []
    for raters in items.values():
        # Ranks are multiples of 1/2, so their sum is exact and an average tie is an equal score.
        scores = np.sum([stats.rankdata(r.scores) for r in raters], axis=0) / len(raters)
        if len(raters) > 1 and len(set(scores)) > 1:
            extra = {**raters[0].extra, "raters": len(raters)}
            scores = tuple(float(score) for score in scores)
            averaged.append(dataclasses.replace(raters[0], scores=scores, labeler=None, extra=extra))
    return averaged


def _references(path: epath.Path) -> list[Demonstration]:
    return [
        Demonstration(prompt=_mr(record), response=record.response, where=record.where)
        for record in records.read(path, Demonstration)
    ]


def _ratings(path: epath.Path, aspect: str) -> tuple[list[Ranking], int]:
    """Reads the rankings of a file, and counts those left out because all answers tie."""
    rankings, tied = [], 0
    for row in records.read(path, Prompt):
        for field in ("item", "rater", "responses", "scores"):
            if field not in row.extra:
                found = textwrap.shorten(", ".join(row.extra), 200, placeholder="...") or "no other field"
                raise RecordError(f"{row.where}: {field}: expected in a rating, found only {found}")
        fields = {
            "prompt": _mr(row),
            "responses": row.extra["responses"],
            "scores": row.extra["scores"],
            "labeler": f"{aspect}-{row.extra['rater']}",
            "aspect": aspect,
            "item": str(row.extra["item"]),
        }
        ranking = records.from_dict(fields, Ranking, row.where)
        chosen = selection.choose_by_content(ranking).record
        if chosen is None:
            tied += 1
        else:
            rankings.append(chosen)
    return rankings, tied


def _mr(record: Demonstration | Prompt) -> str:
    mr = record.extra.get("mr")
    try:
        slots(mr if isinstance(mr, str) else "")
    except DataError:
        raise RecordError(f"{record.where}: mr: expected slot[value], slot[value], ..., found {mr!r:.60}") from None
    return str(mr)
