"""Scores of a reward model for many answers, and its loss and accuracy on held-out rankings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from instructjax.batch import RankingBatch
from instructjax.data import pipeline
from instructjax.data.layouts import TokenizedRanking
from instructjax.data.rankings import ranking_rows
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.models.transformer import ScalarModel
from instructjax.training import metrics, objectives
from instructjax.training.state import Params


@functools.cache
def _compiled(model: ScalarModel) -> Callable[[Any, RankingBatch], jax.Array]:
    return jax.jit(lambda params, batch: replicate(objectives.rewards_of(model, params, constrain_rows(batch))))


def rewards(
    model: ScalarModel, params: Params, rankings: Sequence[TokenizedRanking], *, pad_id: int, batch_size: int
) -> list[np.ndarray]:
    """Scores several answers per prompt, one forward pass a prompt.

    Args:
      model: a reward model.
      params: its weights.
      rankings: prompts with their answers; their scores are not read.
      pad_id: fills rows up.
      batch_size: rows of packed prompts that are computed at a time.

    Returns:
      float64[K] for each prompt, K the number of its answers.
    """
    score = _compiled(model)
    rows = ranking_rows(rankings, pad_id)
    batches = pipeline.ordered_batches(rows, batch_size=min(len(rows), batch_size))
    found = [np.asarray(score(params, batch), np.float64)[batch.valid] for batch in batches]
    return np.split(np.concatenate(found), np.cumsum([len(ranking.responses) for ranking in rankings])[:-1])


def held_out(model: ScalarModel, batches: Sequence[RankingBatch]) -> Callable[[Params], dict[str, float]]:
    """Returns `measure(params)`: loss and accuracy on held-out rankings.

    Args:
      model: without dropout.
      batches: the rankings.
    """
    loss = objectives.ranking_loss(model)

    @jax.jit
    def of_batch(params: Params, batch: RankingBatch) -> metrics.Metrics:
        pair, measured = loss(params, constrain_rows(batch), None)
        return replicate({"loss": metrics.Mean(*pair), "accuracy": measured["accuracy"]})

    def measure(params: Params) -> dict[str, float]:
        values = metrics.compute([jax.device_get(of_batch(params, batch)) for batch in batches])
        return {f"validation_{name}": value for name, value in values.items()}

    return measure
