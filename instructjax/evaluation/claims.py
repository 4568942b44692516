"""Claims of the paper as data, and the rule by which saved results of several seeds decide them.

A claim has one or more parts. A part is a difference of two saved numbers, and the range in which the claim expects it.
The difference is taken within each seed, and its 95 % interval is Student's over seeds: a seed is another world with
other labelers, prompts and weights. A part

    holds            if the whole interval is inside the range
    does not hold    if the whole interval is outside
    cannot be told   otherwise, or if fewer than LEAST_SEEDS seeds have both numbers

A claim holds if all parts do, and does not hold if a part does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructjax.evaluation.intervals import Estimate, clustered_mean

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told"
LEAST_SEEDS = 3
_PLACES = {"start": 0, "first": 1, "end": -1}  # of a line in a curve

Results = Mapping[str, Any]  # the saved numbers of one seed


@dataclasses.dataclass(frozen=True)
class Part:
    """A difference of two saved numbers, and the range in which a claim expects it.

    Attributes:
      about: what it is, for a table.
      plus: where the first number is, or several places whose mean is taken; see `lookup`.
      minus: where the number is that is subtracted; () for none.
      above: the lower end of the range.
      below: the upper end.
    """

    about: str
    plus: str | tuple[str, ...]
    minus: str | tuple[str, ...] = ()
    above: float = -math.inf
    below: float = math.inf

    @property
    def paths(self) -> tuple[str, ...]:
        """The places of its numbers."""
        return (*_places(self.plus), *_places(self.minus))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
      key: a letter.
      section: of the paper.
      sentence: the claim.
      paper: the paper's figures.
      parts: what it says of saved numbers; empty if the sandbox cannot test it.
      note: what is asked differently here, and what is known about the reason of the outcome.
      shown: arms that decide nothing and are shown next to those that do.
    """

    key: str
    section: str
    sentence: str
    paper: str
    parts: tuple[Part, ...]
    note: str = ""
    shown: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What results say of a part.

    Attributes:
      values: the difference in each seed that has both numbers.
      estimate: their mean and interval; None for fewer than two seeds.
      verdict: HOLDS, FAILS or UNTOLD.
    """

    values: tuple[float, ...]
    estimate: Estimate | None
    verdict: str


def measure(part: Part, seeds: Sequence[Results]) -> Outcome:
    """Measures a part in the results of several seeds, and decides it."""
    found = [_difference(part, results) for results in seeds]
    values = tuple(value for value in found if value is not None)
    estimate = clustered_mean(values, range(len(values))) if len(values) > 1 else None
    if estimate is None or len(values) < LEAST_SEEDS:
        return Outcome(values, estimate, UNTOLD)
    if part.above < estimate.low and estimate.high < part.below:
        return Outcome(values, estimate, HOLDS)
    outside = estimate.high < part.above or part.below < estimate.low
    return Outcome(values, estimate, FAILS if outside else UNTOLD)


def _difference(part: Part, results: Results) -> float | None:
    plus, minus = ([lookup(results, path) for path in _places(side)] for side in (part.plus, part.minus))
    known = [number for number in (*plus, *minus) if number is not None]
    if len(known) < len(part.paths):
        return None
    return float(np.mean(known[: len(plus)])) - (float(np.mean(known[len(plus) :])) if minus else 0.0)


def _places(side: str | tuple[str, ...]) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def decide(verdicts: Sequence[str]) -> str:
    """Returns the verdict of a claim from those of its parts."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts and set(verdicts) == {HOLDS} else UNTOLD


def lookup(results: Results, path: str) -> float | None:
    """Returns a saved number; None if it is missing or not finite.

    Args:
      results: nested dictionaries. A curve is a list of lines, each with its "step".
      path: keys with dots between them, such as "base.ppo.end.true_quality". In a curve, the key is "start", "first"
        (the line after the start), "end", or "middle": the line at half of the last step.
    """
    found: Any = results
    for key in path.split("."):
        if isinstance(found, list):
            found = _line(found, key)
        else:
            found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def missing(claims: Sequence[Claim], results: Results) -> list[str]:
    """Returns the places of numbers that claims need and that the results of a seed lack, sorted."""
    paths = {path for claim in claims for part in claim.parts for path in part.paths}
    return sorted(path for path in paths if lookup(results, path) is None)


def _line(curve: Sequence[Mapping[str, float]], key: str) -> Mapping[str, float] | None:
    if key == "middle":
        return next((line for line in curve if 2 * line["step"] == curve[-1]["step"]), None)
    place = _PLACES[key]
    return curve[place] if -len(curve) <= place < len(curve) else None
