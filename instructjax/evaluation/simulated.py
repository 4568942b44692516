"""What simulated labelers say of a model's answers, and what the sandbox knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.evaluation.preference import win_rate
from instructjax.sandbox.labelers import Labeler, compare, rate
from instructjax.sandbox.quality import quality


def true_quality(prompts: Sequence[str], answers: Sequence[str]) -> Estimate:
    """The mean true quality of answers, clustered by prompt."""
    return clustered_mean([quality(p, a) for p, a in zip(prompts, answers, strict=True)], prompts)


def preference(
    prompts: Sequence[str],
    answers: Sequence[str],
    others: Sequence[str],
    labelers: Sequence[Labeler],
    judgements: int,
    rng: np.random.Generator,
) -> Estimate:
    """How often labelers prefer a model's answers to another's; a tie counts half.

    Args:
      prompts: [n] texts.
      answers: [n] of the model.
      others: [n] of the model it is compared with.
      labelers: the group that judges.
      judgements: different labelers, drawn from the group, who compare each pair.
      rng: source of the draw and of the labelers' noise.

    Returns:
      The win rate over n * judgements comparisons, clustered by prompt.
    """
    outcomes, clusters = [], []
    for prompt, answer, other in zip(prompts, answers, others, strict=True):
        for index in rng.choice(len(labelers), size=judgements, replace=False):
            outcomes.append(compare(prompt, answer, other, labelers[index], rng))
            clusters.append(prompt)
    return win_rate(outcomes, clusters)


def ratings(
    prompts: Sequence[str], answers: Sequence[str], labelers: Sequence[Labeler], rng: np.random.Generator
) -> dict[str, Any]:
    """One labeler's Likert score and flags for each answer (Table 3), averaged.

    Returns:
      {"likert": mean of 1 to 7, "metadata": {field: rate in [0, 1]}}
    """
    given = [
        rate(prompt, answer, labelers[int(rng.integers(len(labelers)))], rng)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    means = {name: float(np.mean([entry[name] for entry in given])) for name in given[0]}
    return {"likert": means.pop("overall_quality"), "metadata": means}
