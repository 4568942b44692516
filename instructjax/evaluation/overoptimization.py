"""How far optimizing against a reward model raises the true reward: best of n, and the laws of Gao et al. 2022.

A *proxy* reward, such as a reward model's, chooses or trains; a *gold* reward, such as the sandbox's true quality,
measures what came of it. References: Gao, Schulman and Hilton, "Scaling Laws for Reward Model Overoptimization",
arXiv 2210.10760; Nakano et al., "WebGPT", arXiv 2112.09332, appendix I, for the estimator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from instructjax.errors import DataError

Law = Literal["best of n", "rl"]
Method = Literal["best of n", "ppo"]
LAWS: Mapping[Method, Law] = {"best of n": "best of n", "ppo": "rl"}  # what Gao et al. found for each


def best_of_n(proxy: np.ndarray, gold: np.ndarray, n: int) -> np.ndarray:
    """Estimates the expected gold reward of the answer with the largest proxy reward among n answers.

    The mean over all subsets of n of the N answers that were sampled, which is unbiased:

        sum over i of C(i - 1, n - 1) / C(N, n) * gold of the answer with the i-th smallest proxy reward

    Answers with equal proxy rewards are chosen with equal probability.

    Args:
      proxy: float[P, N], the rewards that choose, for N answers to each of P prompts.
      gold: float[P, N], the rewards of the same answers that are averaged.
      n: how many answers the best one is chosen from, 1 to N.

    Returns:
      float64[P], an estimate for each prompt.

    Raises:
      DataError: n is less than 1 or more than N.
    """
    size = proxy.shape[1]
    if not 1 <= n <= size:
        raise DataError(f"n: expected 1 to {size}, the number of answers per prompt, found {n}")
    order = np.argsort(proxy, axis=1, kind="stable")
    ordered = np.take_along_axis(np.asarray(gold, np.float64), order, axis=1)
    weights = _subset_weights(size, n)
    return np.stack(
        [_tied_means(row, given) @ weights for row, given in zip(ordered, np.sort(proxy, axis=1), strict=True)]
    )


def _subset_weights(size: int, n: int) -> np.ndarray:
    """Returns C(i - 1, n - 1) / C(size, n) for i = 1 .. size, from the last to the first by their ratios."""
    i = np.arange(size - 1, 0, -1)
    ratios = np.maximum(i - n + 1, 0) / i
    return (n / size * np.cumprod([1.0, *ratios]))[::-1]


def _tied_means(gold: np.ndarray, proxy: np.ndarray) -> np.ndarray:
    """Replaces each gold reward by the mean of those with the same proxy reward; both float[N], sorted by proxy."""
    groups = np.cumsum(np.diff(proxy, prepend=proxy[:1]) > 0)
    return (np.bincount(groups, gold) / np.bincount(groups))[groups]


def best_of_n_kl(n: int) -> float:
    """Computes log n - (n - 1) / n, the KL of best of n to the policy that is sampled, in nats per answer.

    It is exact if no two answers have the same proxy reward, and otherwise an upper bound.
    """
    return math.log(n) - (n - 1) / n


def pair_accuracy(proxy: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Computes the share of pairs of answers to a prompt whose order by gold reward the proxy reward has, too.

    Args:
      proxy: float[P, N], for N answers to each of P prompts. Pairs with equal proxy rewards count half.
      gold: float[P, N]. Pairs with equal gold rewards do not count.

    Returns:
      float64[P]; NaN for a prompt whose answers all have the same gold reward.
    """
    shares = []
    for guessed, known in zip(proxy, gold, strict=True):
        better = known[:, None] > known[None]
        right = (np.sign(guessed[:, None] - guessed[None])[better] + 1) / 2
        shares.append(right.mean() if right.size else math.nan)
    return np.array(shares)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law of over-optimization, fitted to measured rewards.

    Attributes:
      law: "best of n", R(d) = d (alpha - beta d), or "rl", R(d) = d (alpha - beta log d).
      alpha: the gain per unit of d at the start, in units of reward.
      beta: what over-optimization takes from it.
      r_squared: 1 - residual sum of squares / sum of squares around the mean.
    """

    law: Law
    alpha: float
    beta: float
    r_squared: float

    def predict(self, kl: np.ndarray) -> np.ndarray:
        """Returns the predicted gain in gold reward at KLs of shape [M], in nats."""
        gain: np.ndarray = _design(self.law, kl) @ np.array([self.alpha, self.beta])
        return gain

    @property
    def peak(self) -> float:
        """The KL, in nats, at which the predicted gain is largest; infinity if it never falls."""
        if self.beta <= 0:
            return math.inf
        if self.law == "best of n":
            return max(self.alpha / (2 * self.beta), 0.0) ** 2
        with np.errstate(over="ignore"):  # a tiny beta puts the peak beyond the range of floats
            return float(np.exp(2 * (np.float64(self.alpha) / self.beta - 1)))


def fit(law: Law, kl: np.ndarray, gain: np.ndarray) -> Fit:
    """Fits a law by least squares, with d = sqrt(KL) (Gao et al., section 3.1).

    Args:
      law: the form to fit; Gao et al. found "best of n" for best of n and "rl" for PPO.
      kl: float[M], KLs to the initial policy in nats; 0 is allowed.
      gain: float[M], the gold reward minus that of the initial policy.

    Raises:
      DataError: fewer than three different KLs above 0, which two coefficients always fit.
    """
    kl, gain = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    if len(set(kl[kl > 0])) < 3:
        raise DataError(f"kl: expected at least 3 different values above 0, found {sorted(set(kl.tolist()))}")
    design = _design(law, kl)
    (alpha, beta), *_ = np.linalg.lstsq(design, gain, rcond=None)
    residual, spread = gain - design @ np.array([alpha, beta]), gain - gain.mean()
    r_squared = 1 - float(residual @ residual) / float(spread @ spread) if spread.any() else math.nan
    return Fit(law, float(alpha), float(beta), r_squared)


def _design(law: Law, kl: np.ndarray) -> np.ndarray:
    """Returns [M, 2]: the gain is this matrix times (alpha, beta)."""
    d = np.sqrt(np.asarray(kl, np.float64))
    slope = d if law == "best of n" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * slope], axis=1)
