"""Evaluates a model's answers with simulated labelers and with the sandbox's true quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.evaluation.preference import win_rate
from instructjax.sandbox.labelers import Labeler, compare, rate
from instructjax.sandbox.quality import quality


def true_quality(prompts: Sequence[str], answers: Sequence[str]) -> Estimate:
    """Computes the mean true quality of answers, clustered by prompt."""
    return clustered_mean([quality(p, a) for p, a in zip(prompts, answers, strict=True)], prompts)


def labeler_win_rate(
    prompts: Sequence[str],
    answers: Sequence[str],
    others: Sequence[str],
    labelers: Sequence[Labeler],
    judgements: int,
    rng: np.random.Generator,
) -> Estimate:
    """Has simulated labelers compare a model's answers with another model's. A tie counts half.

    Args:
      prompts: [n] texts.
      answers: [n], the model's answers.
      others: [n], the other model's answers.
      labelers: the group to draw labelers from.
      judgements: the number of different labelers who compare each pair of answers.
      rng: draws the labelers and their noise.

    Returns:
      The win rate over n * judgements comparisons, clustered by prompt.
    """
    outcomes: list[float] = []
    clusters: list[str] = []
    for prompt, answer, other in zip(prompts, answers, others, strict=True):
        for index in rng.choice(len(labelers), size=judgements, replace=False):
            outcomes.append(compare(prompt, answer, other, labelers[index], rng))
            clusters.append(prompt)
    return win_rate(outcomes, clusters)


def ratings(
    prompts: Sequence[str], answers: Sequence[str], labelers: Sequence[Labeler], rng: np.random.Generator
) -> dict[str, Any]:
    """Has a random labeler rate each answer by the fields of Table 3, and averages the ratings.

    Returns:
      {"likert": the mean score, from 1 to 7, "metadata": {FIELD: its rate in [0, 1]}}
    """
    given = [
        rate(prompt, answer, labelers[int(rng.integers(len(labelers)))], rng)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    means = {name: float(np.mean([entry[name] for entry in given])) for name in given[0]}
    return {"likert": means.pop("overall_quality"), "metadata": means}
