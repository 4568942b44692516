"""The E2E NLG Challenge as demonstrations, rankings and prompts (Dusek et al. 2020).

One narrow task that people did and judged: state the facts of a meaning representation
(MR) such as `name[Blue Spice], eatType[coffee shop], area[city centre]` in a sentence or
two. People wrote the references; others rated the outputs of five systems side by side.

A folder of four files is read, each of JSON lines:

    dev_references.jsonl.gz, test_references.jsonl.gz
        {"prompt", "mr", "response"}
    quality.jsonl.gz, naturalness.jsonl.gz
        {"prompt", "mr", "item", "rater", "responses", "scores"}

In the files, "prompt" is an instruction and the MR; here it is the MR alone, because the
instruction is the same sentence every time and a small model has no room for it. The
names of places stay: there are about forty of them, and all occur in training.
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
from scipy import stats

from instructjax import records
from instructjax.errors import DataError, RecordError
from instructjax.records import Demonstration, Prompt, Ranking

REFERENCES = ("dev_references.jsonl.gz", "test_references.jsonl.gz")
ASPECTS = ("quality", "naturalness")

Judged = TypeVar("Judged", Demonstration, Ranking)

_SLOT = re.compile(r"([A-Za-z ]+)\[([^\[\]]*)\](?:,\s*|\s*$)")


@dataclasses.dataclass(frozen=True)
class E2E:
    """The records of the data set; every record carries its split.

    Attributes:
      demonstrations: the references that people wrote.
      rankings: one for each rater and item, without the all-tied ones.
      averaged: one for each item with several raters, with the mean of their ranks.
      prompts: one for each MR.
      tied: how many rankings were left out because the rater tied all answers.
    """

    demonstrations: tuple[Demonstration, ...]
    rankings: tuple[Ranking, ...]
    averaged: tuple[Ranking, ...]
    prompts: tuple[Prompt, ...]
    tied: int


def load(
    folder: epath.PathLike, aspects: Sequence[str] = ("quality",), validation: float = 0.1, test: float = 0.3
) -> E2E:
    """Reads the data set and splits it by meaning representation.

    The split is drawn by the pattern of an MR, which is the MR without the names of
    places, so that no training input says the same of another restaurant. Only patterns
    that were ranked can fall into the test split: the others could not test a reward
    model, and their references are better used to train on.

    Raters of "quality" were to weigh content and fluency and prefer longer answers;
    raters of "naturalness" did not see the MR and prefer shorter ones. With both aspects
    a reward model learns from labelers who contradict each other.

    Args:
      folder: holds the files named above.
      aspects: one or both of ASPECTS; the rankings of each carry it in `extra["aspect"]`.
      validation: share of patterns to put into the validation split.
      test: share of ranked patterns to put into the test split.

    Returns:
      The records; `labeler` names aspect and rater, `extra["item"]` the item.

    Raises:
      DataError: the folder or a file is missing, or an aspect is unknown.
      RecordError: a line is not what it should be: "FILE:LINE: field: ...".
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

    def placed(record: Judged) -> Judged:
        """The record with the split of its pattern."""
        key = pattern(record.prompt)
        split = records.split_of(Prompt(prompt=key), validation, test if key in ranked else 0.0)
        return dataclasses.replace(record, split=split)

    demonstrations = [placed(record) for file in REFERENCES for record in _references(folder / file)]
    rankings = [placed(ranking) for ranking in rankings]
    prompts = {record.prompt: Prompt(prompt=record.prompt, split=record.split) for record in demonstrations + rankings}
    return E2E(
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
    """A meaning representation without the names of places, its slots in alphabetical order."""
    facts = slots(mr) | {slot: "" for slot in ("name", "near") if slot in slots(mr)}
    return ", ".join(f"{slot}[{value}]" for slot, value in sorted(facts.items()))


def average(rankings: Iterable[Ranking]) -> list[Ranking]:
    """One ranking for each item that several raters ranked: the mean of their ranks.

    Ranks, because raters chose their own scale, some of them up to 100000: a mean of the
    scores would be the opinion of a few.

    Args:
      rankings: with `extra["aspect"]` and `extra["item"]`; the raters of one item rank
        the same answers in the same order.

    Returns:
      Rankings with scores from 1 (every rater's worst) to K (every rater's best) and the
      number of raters in `extra["raters"]`. Items with one rater, or whose answers all
      tie on average, are left out.
    """
    items = collections.defaultdict(list)
    for ranking in rankings:
        items[ranking.extra["aspect"], ranking.extra["item"], ranking.responses].append(ranking)
    averaged = []
    for raters in items.values():
        # Ranks are halves of integers and their sum is exact: a tie on average is an equal score.
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
    """The rankings of a file, and the number of those left out because all answers tied."""
    rankings, tied = [], 0
    for row in records.read(path, Prompt):
        for field in ("item", "rater", "responses", "scores"):
            if field not in row.extra:
                found = textwrap.shorten(", ".join(row.extra), 200, placeholder="...") or "no other field"
                raise RecordError(f"{row.where}: {field}: expected in a rating, found only {found}")
        if _all_equal(row.extra["scores"]):
            tied += 1
            continue
        fields = {
            "prompt": _mr(row),
            "responses": row.extra["responses"],
            "scores": row.extra["scores"],
            "labeler": f"{aspect}-{row.extra['rater']}",
            "aspect": aspect,
            "item": str(row.extra["item"]),
        }
        ranking = records.from_dict(fields, Ranking, row.where)
        scores = _consistent(ranking)
        if _all_equal(scores):
            tied += 1
            continue
        rankings.append(dataclasses.replace(ranking, scores=scores))
    return rankings, tied


def _all_equal(scores: object) -> bool:
    """Whether these are numbers, all equal. What is no list of numbers is left to the validation of records."""
    return (
        isinstance(scores, list | tuple)
        and len(scores) > 1
        and all(isinstance(score, int | float) and score == scores[0] for score in scores)
    )


def _mr(record: Demonstration | Prompt) -> str:
    mr = record.extra.get("mr")
    try:
        slots(mr if isinstance(mr, str) else "")
    except DataError:
        raise RecordError(f"{record.where}: mr: expected slot[value], slot[value], ..., found {mr!r:.60}") from None
    return str(mr)


def _consistent(ranking: Ranking) -> tuple[float, ...]:
    """Gives identical answers the mean of their scores: a rater cannot prefer a text to itself."""
    given = collections.defaultdict(list)
    for response, score in zip(ranking.responses, ranking.scores, strict=True):
        given[response].append(score)
    return tuple(float(np.mean(given[response])) for response in ranking.responses)
