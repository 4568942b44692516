"""How far labelers agree with each other, and a reward model with them (section 4.1).

The unit is the pair of answers. A pair that a labeler ties says nothing about order and
is left out; so is a pair of identical answers. Intervals are clustered by prompt.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructjax.errors import DataError
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.records import Ranking


def pair_credits(rewards: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Whether rewards order the pairs of one ranking as its labeler does.

    Args:
      rewards: [K] rewards of the answers, of any scale.
      scores: [K] the labeler's scores, higher is better, equal is a tie.

    Returns:
      [number of untied pairs] float64, 1 where the better answer has the higher
      reward, 0 where it has the lower, 0.5 where the rewards are equal; pairs in the
      order (0, 1), (0, 2), ..., (K - 2, K - 1).
    """
    rewards, scores = np.asarray(rewards, np.float64), np.asarray(scores, np.float64)
    if rewards.shape != scores.shape:
        raise DataError(f"accuracy: expected one reward for each of {len(scores)} answers, found {len(rewards)}")
    i, j = np.triu_indices(len(scores), k=1)
    order = np.sign(scores[i] - scores[j])
    guess = np.sign(rewards[i] - rewards[j])
    return ((order * guess + 1) / 2)[order != 0]


def reward_accuracy(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float] | np.ndarray]) -> Estimate:
    """The share of untied pairs on which the better answer has the higher reward.

    Every pair counts the same, whatever the K of its ranking; equal rewards count half.

    Args:
      rankings: of one labeler each, or of several labelers on average.
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
    """How much more accurate one reward is than another on the same pairs.

    The interval is of the paired difference, so it is narrower than the two accuracies'
    own intervals suggest. Arguments and errors as in `reward_accuracy`.

    Returns:
      The first accuracy minus the second, in [-1, 1].
    """
    ours, prompts = _credits(rankings, rewards)
    theirs, _ = _credits(rankings, others)
    return clustered_mean(ours - theirs, prompts)


def pairwise_agreement(rankings: Sequence[Ranking]) -> Estimate:
    """The share of pairs that two labelers order alike, of those that neither ties.

    Rankings of the same prompt and the same answers, in whatever order, are compared,
    each labeler with each other. The paper reports 72.6 +- 1.5 % for its training
    labelers (section 3.4).

    Args:
      rankings: any rankings; those that nobody else ranked are passed over.

    Returns:
      The agreement in [0, 1]; n counts pairs of labelers times pairs of answers.

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
        raise DataError(f"agreement: expected 2 prompts that two labelers ranked, found {len(set(prompts))}")
    return clustered_mean(agreed, prompts)


def calibration(
    rankings: Sequence[Ranking], rewards: Sequence[Sequence[float] | np.ndarray], bins: int = 10
) -> list[dict[str, float]]:
    """How often the answer with the higher reward is the better one, by how much higher it is.

    A reward model says that it is so with probability sigmoid(margin) (section 3.5, equation
    1). Untied pairs are put into bins of equal size by their margin.

    Args:
      rankings: see `reward_accuracy`.
      rewards: for each ranking, the rewards of its K answers.
      bins: how many, at most one for each pair.

    Returns:
      For each bin, from the least margin to the greatest: "margin", the mean difference of
      the rewards, not negative; "predicted", the mean of sigmoid(margin); "right", the share
      of pairs that are ordered as the labeler does; "n", the number of pairs.
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
    """The length baseline: prefer the longer answer, or the shorter, as training rankings do.

    Args:
      train: rankings that decide whether longer or shorter answers are preferred.
      rankings: rankings to give rewards for.

    Returns:
      For each ranking of `rankings`, [K] rewards (plus or minus the number of
      characters), and "longer" or "shorter".
    """
    longer = _credits(train, [_lengths(ranking) for ranking in train])[0].mean() >= 0.5
    sign = 1.0 if longer else -1.0
    return [sign * _lengths(ranking) for ranking in rankings], "longer" if longer else "shorter"


def against_raters(
    train: Sequence[Ranking],
    single: Sequence[Ranking],
    averaged: Sequence[Ranking],
    reward: Callable[[Sequence[Ranking]], Sequence[np.ndarray]],
) -> dict[str, Any]:
    """A reward model on held-out rankings by people, beside the length baseline and the raters themselves.

    Args:
      train: rankings that the reward model learned from; the length baseline's too.
      single: held-out rankings of one rater each.
      averaged: held-out rankings with the mean judgement of several raters.
      reward: from rankings, for each the [K] rewards of its answers.

    Returns:
      For "single" and "averaged" under "accuracy": estimates, as mappings, of the
      accuracy of "reward_model" and "length" and of their "difference"; for "single"
      also the agreement of "raters". Under "length_prefers": "longer" or "shorter". Under
      "calibration", for "single" and "averaged": see `calibration`.
    """
    accuracy, calibrated = {}, {}
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
    """|r_i - r_j| of the untied pairs, in the order of `pair_credits`."""
    i, j = np.triu_indices(len(ranking.scores), k=1)
    scores, rewards = np.asarray(ranking.scores), np.asarray(rewards, np.float64)
    return np.abs(rewards[i] - rewards[j])[scores[i] != scores[j]]


def _credits(rankings: Sequence[Ranking], rewards: Sequence) -> tuple[np.ndarray, list[str]]:
    """The credit of every untied pair of every ranking, and the prompt that it belongs to."""
    if len(rankings) != len(rewards):
        raise DataError(f"accuracy: expected rewards for {len(rankings)} rankings, found {len(rewards)}")
    credits, prompts = [np.empty(0)], []
    for ranking, reward in zip(rankings, rewards, strict=True):
        credit = pair_credits(reward, ranking.scores)
        credits.append(credit)
        prompts.extend([ranking.prompt] * len(credit))
    return np.concatenate(credits), prompts
