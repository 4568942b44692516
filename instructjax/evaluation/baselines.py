"""Baselines for reward models: how far do surface features order answers?"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from instructjax.evaluation.text_metrics import require
from instructjax.records import Ranking

MAX_WORDS = 50_000


def can_fit() -> bool:
    """Returns whether scikit-learn, of the extra `tasks`, is installed."""
    return importlib.util.find_spec("sklearn") is not None


def bag_of_words_rewards(train: Sequence[Ranking], rankings: Sequence[Ranking]) -> list[np.ndarray]:
    """Fits a linear reward of the words in an answer to training rankings, and scores answers with it.

    The reward is w · x, where x marks the words of the answer. scikit-learn's logistic regression fits w to the untied
    pairs, so that sigmoid(w · (x_better - x_worse)) is the probability of the labeler's order. The prompt is not read.

    Args:
      train: rankings with at least one untied pair.
      rankings: rankings whose answers get a reward.

    Returns:
      For each of `rankings`, [K] rewards.

    Raises:
      DataError: scikit-learn is not installed.
    """
    vectorizer = require("sklearn.feature_extraction.text").CountVectorizer(
        binary=True, max_features=MAX_WORDS, token_pattern=r"\S+"
    )
    words = vectorizer.fit_transform([response for ranking in train for response in ranking.responses])
    better, worse = _untied_pairs(train)
    # A classifier needs both classes, so each pair is there in both orders. C = 0.5, half the default, counts it once.
    differences = sparse.vstack([words[better] - words[worse], words[worse] - words[better]])
    linear = require("sklearn.linear_model").LogisticRegression(C=0.5, fit_intercept=False, max_iter=1000)
    weights = linear.fit(differences, np.repeat([1, -1], len(better))).coef_[0]
    return [vectorizer.transform(ranking.responses) @ weights for ranking in rankings]


def _untied_pairs(rankings: Sequence[Ranking]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the better and of the worse answers, counted over all rankings."""
    better, worse, first = [], [], 0
    for ranking in rankings:
        scores = np.asarray(ranking.scores)
        i, j = np.nonzero(scores[:, None] > scores[None, :])
        better.append(first + i)
        worse.append(first + j)
        first += len(scores)
    return np.concatenate(better), np.concatenate(worse)
