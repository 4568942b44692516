"""Scores answers with a reward model, and measures its loss and accuracy on held-out rankings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from instructjax.batch import RankingBatch
from instructjax.data import pipeline
from instructjax.data.layouts import TokenizedRanking
from instructjax.data.prepared import Over
from instructjax.data.rankings import ranking_rows
from instructjax.models.partitioning import constrain_rows, even_rows, replicate
from instructjax.models.transformer import ScalarModel
from instructjax.training import metrics, objectives
from instructjax.training.state import Params


@functools.cache
def _compiled(model: ScalarModel) -> Callable[[Any, RankingBatch], jax.Array]:
    return jax.jit(lambda params, batch: replicate(objectives.rewards_of(model, params, constrain_rows(batch))))


def rewards(
    model: ScalarModel,
    params: Params,
    rankings: Sequence[TokenizedRanking],
    *,
    pad_id: int,
    batch_size: int,
    over: Over = iter,
) -> list[np.ndarray]:
    """Scores several answers per prompt, with one forward pass per prompt.

    Args:
      model: a reward model.
      params: its weights.
      rankings: prompts with their answers. The labelers' scores are not read.
      pad_id: the id of the padding.
      batch_size: the maximum number of packed rows per forward pass, rounded up as `even_rows` does.
      over: wraps the pass over the batches.

    Returns:
      For each prompt, float64[K], the rewards of its K answers.
    """
    score = _compiled(model)
    rows = ranking_rows(rankings, pad_id)
    batches = pipeline.ordered_batches(rows, batch_size=even_rows(min(len(rows), batch_size)))
    found = [np.asarray(score(params, batch), np.float64)[batch.valid] for batch in over(batches)]
    return np.split(np.concatenate(found), np.cumsum([len(ranking.responses) for ranking in rankings])[:-1])


def held_out_metrics(model: ScalarModel, batches: Sequence[RankingBatch]) -> Callable[[Params], dict[str, float]]:
    """Builds `measure(params)`, which returns "validation_loss" and "validation_accuracy".

    Args:
      model: a model without dropout.
      batches: held-out rankings.
    """
    loss = objectives.ranking_loss(model)

    @jax.jit
    def measure_batch(params: Params, batch: RankingBatch) -> metrics.Metrics:
        pair, measured = loss(params, constrain_rows(batch), None)
        return replicate({"loss": metrics.Mean(*pair), "accuracy": measured["accuracy"]})

    def measure(params: Params) -> dict[str, float]:
        values = metrics.compute([jax.device_get(measure_batch(params, batch)) for batch in batches])
        return {f"validation_{name}": value for name, value in values.items()}

    return measure
