"""Compares the means of two groups of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats

from instructjax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of two means.

    Attributes:
      mean: of the first sample minus that of the second.
      low: the lower end of its 95 % interval.
      high: the upper end.
      p_value: of the hypothesis that the means are equal, two-sided.
    """

    mean: float
    low: float
    high: float
    p_value: float


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares the means of two independent samples whose variances may differ (Welch 1947).

    Args:
      first: at least two values.
      second: at least two values.

    Raises:
      DataError: a sample has fewer than two values.
    """
    if min(len(first), len(second)) < 2:
        raise DataError(f"expected two samples of at least 2 values, found {len(first)} and {len(second)}")
    mean = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == np.ptp(second) == 0:  # the limit of small variances
        return Difference(mean, mean, mean, float(mean == 0))
    found = scipy.stats.ttest_ind(first, second, equal_var=False)
    interval = found.confidence_interval()
    return Difference(mean, float(interval.low), float(interval.high), float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several tests (Holm 1979).

    Those below α reject their hypotheses, and the probability that any true one is among these is at most α.

    Returns:
      The adjusted values, in the given order.
    """
    order = np.argsort(p_values)
    factors = len(order) - np.arange(len(order))
    adjusted = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values, float)[order]), 1.0)
    return adjusted[np.argsort(order)].tolist()
