"""What a reward model says of several answers to each of some prompts, in one forward pass a prompt."""

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
from instructjax.stages.workspace import Trained
from instructjax.training import objectives


@functools.cache
def _compiled(model: ScalarModel) -> Callable[[Any, RankingBatch], jax.Array]:
    return jax.jit(lambda params, batch: replicate(objectives.rewards_of(model, params, constrain_rows(batch))))


def rewards(reward: Trained, rankings: Sequence[TokenizedRanking], batch_size: int) -> list[np.ndarray]:
    """The reward of each answer.

    Args:
      reward: a reward model.
      rankings: prompts with their answers; their scores are not read.
      batch_size: rows of packed prompts that are computed at a time.

    Returns:
      float64[K] for each prompt, K the number of its answers.
    """
    score = _compiled(reward.model)
    rows = ranking_rows(rankings, reward.tokenizer.pad_id)
    batches = pipeline.ordered_batches(rows, batch_size=min(len(rows), batch_size))
    found = [np.asarray(score(reward.params, batch), np.float64)[batch.valid] for batch in batches]
    return np.split(np.concatenate(found), np.cumsum([len(ranking.responses) for ranking in rankings])[:-1])
