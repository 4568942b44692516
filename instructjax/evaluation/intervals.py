"""Means with cluster-robust 95 % intervals.

Many judgments share a prompt: those of several labelers, of several samples, or of all pairs in
a ranking. They are not independent, and an interval that treats them as independent is too
narrow. Every interval in this package is clustered, by prompt unless stated otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import special

from instructjax.errors import DataError, SampleSizeError

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Attributes:
      mean: the mean, in the unit of the values.
      low: the interval's lower end.
      high: the interval's upper end.
      n: the number of values (not of clusters).
    """

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """Returns the four numbers in the form of results.json."""
        return dataclasses.asdict(self)


def standard_error(values: np.ndarray) -> float | None:
    """Computes the standard error of the mean of independent values [n]; None for fewer than two."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def clustered_mean(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | np.ndarray) -> Estimate:
    """Computes the mean of values that are independent between clusters but not within them.

    With G clusters, n values and mean m, the cluster-robust variance of the mean is

        G / (G - 1) * sum over clusters of (sum of (x - m) in the cluster)^2 / n^2

    (Liang and Zeger 1986; Cameron and Miller 2015, section II). The interval uses Student's t
    with G - 1 degrees of freedom. With one value per cluster, this is the ordinary standard
    error. If all values are equal, the interval has no width.

    For the difference of two measures on the same items, pass the differences.

    Args:
      values: [n] numbers, of any unit.
      clusters: [n] names, equal for values of the same cluster.

    Returns:
      The mean and its interval, in the unit of the values. The interval is not clipped to the
      range of possible values.

    Raises:
      DataError: the lengths differ, a value is not finite, or there are fewer than two
        clusters, with which the spread is unknown.
    """
    error = clustered_error(values, clusters)
    mean, half = np.mean(values, dtype=np.float64), special.stdtrit(len(set(clusters)) - 1, (1 + LEVEL) / 2) * error
    return Estimate(mean=float(mean), low=float(mean - half), high=float(mean + half), n=len(values))


def clustered_error(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | np.ndarray) -> float:
    """Computes the cluster-robust standard error of a mean; see `clustered_mean`."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) != len(clusters):
        raise DataError(
            f"clustered mean: expected one cluster per value, found shape {x.shape} and {len(clusters)} clusters"
        )
    if not np.isfinite(x).all():
        raise DataError(f"clustered mean: expected finite values, found {x[~np.isfinite(x)][0]}")
    index, groups = _numbered(clusters)
    residuals = np.bincount(index, weights=x - x.mean(), minlength=groups)
    return float(np.sqrt(groups / (groups - 1) * np.sum(residuals**2)) / len(x))


def bootstrap_error(
    counts: np.ndarray, score: Callable[[np.ndarray], float], clusters: Sequence[Hashable], draws: int = 500
) -> float:
    """Estimates the standard error of a function of sums by the bootstrap over clusters.

    Each draw has as many clusters as there are, with replacement and a fixed seed. Draws for which the function is not
    defined (NaN) do not count.

    Args:
      counts: float[n, m], the summands.
      score: `score(sums)` of float[m].
      clusters: [n] names; see `clustered_mean`.
      draws: the number of times that clusters are drawn.

    Raises:
      SampleSizeError: there are fewer than two clusters.
    """
    index, groups = _numbered(clusters)
    summed = np.zeros((groups, counts.shape[1]))
    np.add.at(summed, index, counts)
    drawn = np.random.default_rng(0).integers(groups, size=(draws, groups))
    return float(np.nanstd([score(summed[draw].sum(axis=0)) for draw in drawn], ddof=1))


def _numbered(clusters: Sequence[Hashable] | np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers clusters from 0; returns the number of each value's cluster, and of clusters."""
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(cluster, len(number)) for cluster in clusters], np.int64)
    if len(number) < 2:
        raise SampleSizeError(f"clustered mean: expected at least 2 clusters (prompts), found {len(number)}")
    return index, len(number)
