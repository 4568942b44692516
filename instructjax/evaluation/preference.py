"""Measures how often one model's answers are preferred to another's (section 3.6)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from instructjax.errors import DataError
from instructjax.evaluation.intervals import Estimate, clustered_mean


def win_rate(outcomes: Sequence[float] | np.ndarray, prompts: Sequence[Hashable]) -> Estimate:
    """Computes the share of comparisons that a model wins, as in the paper's Figure 1.

    Args:
      outcomes: [n], one per comparison: 1 if the model's answer was preferred, 0 if the other
        model's was, 0.5 for a tie.
      prompts: [n], the prompt of each comparison. All comparisons on a prompt, by several
        labelers or of several samples, form a cluster.

    Returns:
      The win rate in [0, 1] and its 95 % interval, clustered by prompt.

    Raises:
      DataError: an outcome is not 0, 0.5 or 1, or there are fewer than two prompts.
    """
    x = np.asarray(outcomes, np.float64)
    wrong = x[~np.isin(x, (0.0, 0.5, 1.0))]
    if wrong.size:
        raise DataError(f"win rate: expected outcomes 0, 0.5 or 1, found {wrong[0]}")
    return clustered_mean(x, prompts)


def outcomes(scores: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> np.ndarray:
    """Converts the scores of two models' answers to outcomes of comparisons.

    Args:
      scores: [n] scores of one model's answers. Higher is better.
      others: [n] scores that the same labelers gave to the other model's answers.

    Returns:
      [n] float64: 1 if the first score is higher, 0 if it is lower, 0.5 for a tie.
    """
    return (np.sign(np.asarray(scores, np.float64) - np.asarray(others, np.float64)) + 1) / 2
