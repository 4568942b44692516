"""Bootstrap over prompts for the laws of over-optimization: coefficients, extrapolation, trends, and gaps of curves.

All functions take the same draws of prompts, so that quantities of several curves can be compared draw by draw. Row 0
weighs all prompts alike: it gives the estimate, and the other rows its distribution. The intervals know how prompts and
answers vary, not how another training of the same models would vary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from instructjax.errors import DataError
from instructjax.evaluation import overoptimization
from instructjax.evaluation.intervals import LEVEL, Estimate
from instructjax.evaluation.overoptimization import Fit, Law


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rewards along an optimization, for each of P prompts. The first of its M points is the initial policy.

    Attributes:
      kl: float[M, P], the KL to the initial policy, in nats.
      proxy: float[M, P], the reward that is optimized.
      gold: float[M, P], the true reward.
    """

    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A gain that a law predicts, next to the measured one.

    Attributes:
      kl: where, in nats.
      predicted: the gain of the law, in units of reward.
      low: lower end of the interval that has the measured gain in 95 % of cases, if the law holds.
      high: upper end.
      measured: the gain.
    """

    kl: float
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def is_inside(self) -> bool:
        """Whether the measured gain lies in the interval."""
        return self.low <= self.measured <= self.high


def resample(clusters: Sequence[Hashable], draws: int, seed: int = 0) -> np.ndarray:
    """Draws clusters of values with replacement, as many as there are.

    Args:
      clusters: [P] names, equal for values of the same cluster, such as equal prompts.
      draws: the number of times that clusters are drawn.
      seed: of the draws.

    Returns:
      float64[1 + draws, P], the weight of each value; rows sum to 1, and the first has equal weights.

    Raises:
      DataError: there are fewer than two clusters.
    """
    names = list(dict.fromkeys(clusters))
    if len(names) < 2:
        raise DataError(f"clusters: expected at least 2 different ones, found {len(names)}")
    number = {name: index for index, name in enumerate(names)}
    index = np.array([number[cluster] for cluster in clusters])
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    counts = np.stack([np.ones(len(names)), *(np.bincount(draw, minlength=len(names)) for draw in drawn)])
    weights = counts[:, index]
    return weights / weights.sum(axis=1, keepdims=True)


def points(curve: Curve, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns KL and gain in gold reward of each draw: both float64[B, M]. A mean KL below 0 counts as 0."""
    gold = weights @ curve.gold.T
    return np.maximum(weights @ curve.kl.T, 0.0), gold - gold[:, :1]


def coefficients(law: Law, curve: Curve, weights: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
    """Fits a law to each draw, and returns float64[B, 2]: alpha and beta.

    Args:
      law: the form to fit.
      curve: M points.
      weights: float[B, P]; see `resample`.
      used: bool[M], the points that are fitted; None for all.

    Raises:
      DataError: see `overoptimization.fit`.
    """
    chosen = slice(None) if used is None else used
    fits = [
        overoptimization.fit(law, kl[chosen], gain[chosen]) for kl, gain in zip(*points(curve, weights), strict=True)
    ]
    return np.array([(found.alpha, found.beta) for found in fits])


def interval(values: np.ndarray, n: int) -> Estimate:
    """Returns the estimate in the first of [B] values with the 95 % percentile interval of the others.

    Args:
      values: the estimate, and those of the draws.
      n: the number of prompts.
    """
    low, high = np.quantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(values[0]), float(low), float(high), n)


def compare(kl: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> Prediction:
    """Compares predicted and measured gains of each draw, all float[B].

    The interval is the prediction plus the deviations of the error, measured - predicted, from the error of the
    estimate. It covers the noise of both.
    """
    error = measured - predicted
    low, high = np.quantile(error[1:] - error[0], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    at = float(predicted[0])
    return Prediction(float(kl[0]), at, at + float(low), at + float(high), float(measured[0]))


def extrapolate(law: Law, curve: Curve, weights: np.ndarray, share: float = 0.5) -> Prediction:
    """Fits a law to the points with small KLs, and predicts the gain at the largest KL.

    Args:
      law: the form to fit.
      curve: M points.
      weights: float[B, P]; see `resample`.
      share: points with more than this share of the largest KL are left out of the fit.

    Raises:
      DataError: fewer than three different KLs above 0 are left.
    """
    kl, gain = points(curve, weights)
    used, last = kl[0] <= share * kl[0].max(), int(kl[0].argmax())
    return _predict(law, coefficients(law, curve, weights, used), kl[:, last], gain[:, last])


def trend(fitted: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Regresses coefficients of laws on features of the reward models, by least squares.

    Args:
      fitted: float[B, K, 2], alpha and beta of K reward models; see `coefficients`.
      features: float[K, F], such as the logarithms of parameters and comparisons.

    Returns:
      float64[B, 1 + F, 2], the intercepts and slopes of alpha and beta.

    Raises:
      DataError: the features of these reward models do not determine the slopes.
    """
    design = _with_ones(features)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise DataError(
            f"features: expected reward models that differ in each of the {features.shape[1]} features independently, "
            f"found {len(features)} reward models of rank {np.linalg.matrix_rank(design) - 1}"
        )
    slopes: np.ndarray = np.linalg.pinv(design) @ fitted
    return slopes


def predict_unseen(law: Law, curve: Curve, weights: np.ndarray, slopes: np.ndarray, features: np.ndarray) -> Prediction:
    """Predicts the gain at the largest KL of a reward model from the trend over other reward models.

    Args:
      law: the form.
      curve: of the unseen reward model.
      weights: float[B, P], the same as for the trend.
      slopes: float[B, 1 + F, 2]; see `trend`.
      features: float[F] of the unseen reward model.
    """
    kl, gain = points(curve, weights)
    last = int(kl[0].argmax())
    return _predict(law, (_with_ones(features[None]) @ slopes)[:, 0], kl[:, last], gain[:, last])


def fall(curve: Curve, weights: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """Computes how far the measured gain at a KL lies below the largest one before it.

    The gain is interpolated linearly in sqrt(KL).

    Args:
      curve: of M points.
      weights: float[B, P]; see `resample`.
      kl: float[B], in nats; at most the largest of each draw.

    Returns:
      float64[B], at least 0: the gold reward that stopping earlier would have saved.
    """
    lost = []
    for x, y, end in zip(*points(curve, weights), kl, strict=True):
        at_end = _gain_at(x, y, end)
        lost.append(max(y[x <= end].max(), at_end) - at_end)
    return np.array(lost)


def gap(first: Curve, second: Curve, weights: np.ndarray) -> np.ndarray:
    """Computes how far the second curve lies above the first at equal KL.

    The first is interpolated linearly in sqrt(KL). The mean is over the points of the second after its initial policy
    whose KL the first reaches.

    Args:
      first: a curve.
      second: a curve of the same prompts.
      weights: float[B, P]; see `resample`.

    Returns:
      float64[B], in units of reward.

    Raises:
      DataError: no point of the second lies in the range of the first.
    """
    (kl, gain), (other_kl, other_gain) = points(first, weights), points(second, weights)
    common = other_kl[0] <= kl[0].max()
    common[0] = False
    if not common.any():
        raise DataError(f"second: expected KLs up to {kl[0].max():.3g}, found {other_kl[0][1:].min():.3g} and more")
    gaps = []
    for x, y, at, measured in zip(kl, gain, other_kl[:, common], other_gain[:, common], strict=True):
        gaps.append(np.mean(measured - _gain_at(x, y, at)))
    return np.array(gaps)


def p_value(values: np.ndarray) -> float:
    """Computes the two-sided bootstrap p-value of the hypothesis that [B] values, the first an estimate, are about 0.

    The share of draws on the other side of 0, twice, with one draw added so that it is never 0.
    """
    draws = values[1:]
    return min(1.0, 2 * (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws)))


def _gain_at(kl: np.ndarray, gain: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolates gains [M] linearly in sqrt(KL)."""
    order = np.argsort(kl, kind="stable")
    return np.interp(np.sqrt(at), np.sqrt(kl[order]), gain[order])


def _predict(law: Law, fitted: np.ndarray, kl: np.ndarray, measured: np.ndarray) -> Prediction:
    """Compares the gain of each draw's law at each draw's KL with the measured one."""
    predicted = [Fit(law, alpha, beta, 1.0).predict(at[None])[0] for (alpha, beta), at in zip(fitted, kl, strict=True)]
    return compare(kl, np.array(predicted), measured)


def _with_ones(features: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
