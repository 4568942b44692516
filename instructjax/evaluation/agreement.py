"""Measures how often labelers agree with each other, and a reward model with labelers (section 4.1).

The unit is a pair of answers to the same prompt. Pairs that a labeler ties and pairs of
identical answers are left out. Intervals are clustered by prompt.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructjax.errors import DataError, SampleSizeError
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.records import Ranking


def pair_credits(rewards: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Compares the order of rewards with the order of a labeler's scores, pair by pair.

    Args:
      rewards: [K] rewards of the answers, on any scale.
      scores: [K] the labeler's scores. Higher is better, and equal is a tie.

    Returns:
      [number of untied pairs] float64: 1 if the better answer has the higher reward, 0 if it
      has the lower reward, 0.5 if the rewards are equal. The order of the pairs is
      (0, 1), (0, 2), ..., (K - 2, K - 1).

    Raises:
      DataError: the lengths differ.
    """
    rewards, scores = np.asarray(rewards, np.float64), np.asarray(scores, np.float64)
    if rewards.shape != scores.shape:
        raise DataError(f"accuracy: expected one reward for each of {len(scores)} answers, found {len(rewards)}")
    i, j = np.triu_indices(len(scores), k=1)
    order = np.sign(scores[i] - scores[j])
    guess = np.sign(rewards[i] - rewards[j])
    return ((order * guess + 1) / 2)[order != 0]


def reward_accuracy(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float] | np.ndarray]) -> Estimate:
    """Computes the share of untied pairs in which the better answer has the higher reward.

    Every pair has the same weight, regardless of the K of its ranking. Equal rewards count half.

    Args:
      rankings: each by one labeler, or averaged over several.
      rewards: for each ranking, the rewards of its K answers.

    Returns:
      The accuracy in [0, 1] over n pairs, clustered by prompt.

    Raises:
      DataError: lengths differ, or there are fewer than two prompts.
    """
    return clustered_mean(*_credits(rankings, rewards))


def accuracy_difference(
    rankings: Sequence[Ranking],
    rewards: Sequence[Sequence[float] | np.ndarray],
    others: Sequence[Sequence[float] | np.ndarray],
) -> Estimate:
    """Computes how much more accurate one set of rewards is than another on the same pairs.

    The interval is that of the paired difference, so it is narrower than the intervals of the
    two accuracies suggest. See `reward_accuracy` for arguments and errors.

    Returns:
      The first accuracy minus the second, in [-1, 1].
    """
    first, prompts = _credits(rankings, rewards)
    second, _ = _credits(rankings, others)
    return clustered_mean(first - second, prompts)


def pairwise_agreement(rankings: Sequence[Ranking]) -> Estimate:
    """Computes the share of pairs that two labelers order alike, among pairs that neither ties.

    It compares all labelers who ranked the same answers to the same prompt, regardless of the order
    in which they saw them. The paper reports 72.6 +- 1.5 % for its training labelers (section 3.4).

    Args:
      rankings: any rankings. Answers that only one labeler ranked are ignored.

    Returns:
      The agreement in [0, 1], where n counts pairs of labelers times pairs of answers.

    Raises:
      DataError: fewer than two prompts have rankings that can be compared.
    """
    groups = collections.defaultdict(list)
    for ranking in rankings:
        order = sorted(range(len(ranking.responses)), key=ranking.responses.__getitem__)
        responses = tuple(ranking.responses[k] for k in order)
        groups[ranking.prompt, responses].append(np.array([ranking.scores[k] for k in order]))
    agreed, prompts = [], []
    for (prompt, responses), labelers in groups.items():
        i, j = np.triu_indices(len(responses), k=1)
        differ = np.array([responses[a] != responses[b] for a, b in zip(i, j, strict=True)])
        orders = [np.sign(scores[i] - scores[j]) * differ for scores in labelers]
        for one, other in itertools.combinations(orders, 2):
            product = one * other
            agreed.extend(product[product != 0] > 0)
            prompts.extend([prompt] * np.count_nonzero(product))
    if len(set(prompts)) < 2:
        raise SampleSizeError(
            f"labeler agreement: expected at least 2 prompts with pairs that two labelers ranked and neither tied, "
            f"found {len(set(prompts))}"
        )
    return clustered_mean(agreed, prompts)


def calibration(
    rankings: Sequence[Ranking], rewards: Sequence[Sequence[float] | np.ndarray], bins: int = 10
) -> list[dict[str, float]]:
    """Compares a reward model's confidence with its accuracy.

    The margin of a pair is the absolute difference of its rewards. A reward model predicts that
    the answer with the higher reward is the better one with probability sigmoid(margin)
    (section 3.5, equation 1). Untied pairs are sorted by margin into bins of equal size.

    Args:
      rankings: see `reward_accuracy`.
      rewards: for each ranking, the rewards of its K answers.
      bins: the number of bins. Bins without a pair are left out.

    Returns:
      For each bin, from the smallest margin to the largest: "margin", the mean margin;
      "predicted", the mean of sigmoid(margin); "right", the share of pairs that the rewards
      order as the labeler does; "n", the number of pairs.
    """
    credits, _ = _credits(rankings, rewards)
    margins = np.concatenate([np.empty(0), *map(_margins, rankings, rewards)])
    order = np.argsort(margins, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [
        {
            "margin": float(margins[part].mean()),
            "predicted": float((1 / (1 + np.exp(-margins[part]))).mean()),
            "right": float(credits[part].mean()),
            "n": len(part),
        }
        for part in parts
    ]


def length_rewards(train: Sequence[Ranking], rankings: Sequence[Ranking]) -> tuple[list[np.ndarray], str]:
    """Computes the rewards of the length baseline, which prefers longer or shorter answers.

    Args:
      train: rankings that decide whether longer or shorter answers are preferred.
      rankings: rankings whose answers get a reward.

    Returns:
      For each of `rankings`, [K] rewards (plus or minus the number of characters); and "longer"
      or "shorter".
    """
    longer = _credits(train, [_lengths(ranking) for ranking in train])[0].mean() >= 0.5
    sign = 1.0 if longer else -1.0
    return [sign * _lengths(ranking) for ranking in rankings], "longer" if longer else "shorter"


def compare_with_raters(
    train: Sequence[Ranking],
    single: Sequence[Ranking],
    averaged: Sequence[Ranking],
    reward: Callable[[Sequence[Ranking]], Sequence[np.ndarray]],
) -> dict[str, Any]:
    """Evaluates a reward model on held-out human rankings, next to a length baseline and the raters themselves.

    Args:
      train: rankings that the reward model was trained on. The length baseline uses them, too.
      single: held-out rankings, each by one rater.
      averaged: held-out rankings, each averaged over several raters.
      reward: `reward(rankings)` returns the [K] rewards of the answers of each ranking.

    Returns:
      {
        "accuracy": {
          "single": {"reward_model", "length", "difference", "raters": ESTIMATE},
          "averaged": {"reward_model", "length", "difference": ESTIMATE},
        },
        "length_prefers": "longer" or "shorter",
        "calibration": {"single", "averaged": see `calibration`},
      }
      with estimates as mappings. "difference" is the reward model minus the length baseline, and
      "raters" is the raters' agreement with each other.
    """
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    calibrated: dict[str, list[dict[str, float]]] = {}
    for name, rankings in (("single", single), ("averaged", averaged)):
        rewards = reward(rankings)
        lengths, prefers = length_rewards(train, rankings)
        estimates = {
            "reward_model": reward_accuracy(rankings, rewards),
            "length": reward_accuracy(rankings, lengths),
            "difference": accuracy_difference(rankings, rewards, lengths),
        }
        if name == "single":
            estimates["raters"] = pairwise_agreement(rankings)
        accuracy[name] = {measure: estimate.to_dict() for measure, estimate in estimates.items()}
        calibrated[name] = calibration(rankings, rewards)
    return {"accuracy": accuracy, "length_prefers": prefers, "calibration": calibrated}


def _lengths(ranking: Ranking) -> np.ndarray:
    return np.array([len(response) for response in ranking.responses], np.float64)


def _margins(ranking: Ranking, rewards: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns |r_i - r_j| of the untied pairs, in the order of `pair_credits`."""
    i, j = np.triu_indices(len(ranking.scores), k=1)
    scores, rewards = np.asarray(ranking.scores), np.asarray(rewards, np.float64)
    return np.abs(rewards[i] - rewards[j])[scores[i] != scores[j]]


def _credits(
    rankings: Sequence[Ranking], rewards: Sequence[Sequence[float] | np.ndarray]
) -> tuple[np.ndarray, list[str]]:
    """Returns the credit and the prompt of every untied pair of every ranking."""
    if len(rankings) != len(rewards):
        raise DataError(f"accuracy: expected rewards for {len(rankings)} rankings, found {len(rewards)}")
    credits: list[np.ndarray] = [np.empty(0)]
    prompts: list[str] = []
    for ranking, reward in zip(rankings, rewards, strict=True):
        credit = pair_credits(reward, ranking.scores)
        credits.append(credit)
        prompts.extend([ranking.prompt] * len(credit))
    return np.concatenate(credits), prompts
