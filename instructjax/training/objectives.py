"""Losses of whole batches: a model, a batch from `batch.py`, an equation from `losses.py`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.batch import LMBatch, RankingBatch
from instructjax.models import unembedding
from instructjax.rollout import consistency
from instructjax.training.step import Loss


def language_model_loss(model: Any) -> Loss:
    """Cross-entropy of each token given those before it: pretraining, SFT and the ptx term.

    Args:
      model: a LanguageModel; its dropout is applied if its rate is above 0.

    Returns:
      A loss of an `LMBatch`, in nats; weights are `batch.weights`.
    """

    def loss(params: Any, batch: LMBatch, key: jax.Array):
        hidden, _ = model.apply(
            {"params": params},
            batch.tokens,
            batch.segments,
            batch.positions,
            deterministic=model.config.dropout == 0,
            rngs=None if key is None else {"dropout": key},
            method="hidden",
        )
        # The token in column t is predicted at column t - 1.
        aligned = batch.weights[:, 1:], hidden[:, :-1], batch.tokens[:, 1:]
        weights, hidden, tokens = unembedding.weighted_first(*aligned)
        log_probs, right = unembedding.read_logits(
            model, params, hidden, tokens, weights, lambda *z: (losses.log_probs(*z), losses.is_most_likely(*z))
        )
        metrics = {"token_accuracy": losses.masked_sum(right, weights), "padding": padding(batch.segments)}
        return losses.cross_entropy(log_probs, weights), metrics

    return loss


def ranking_loss(model: Any) -> Loss:
    """-log sigmoid(r_w - r_l) over all pairs of a prompt's answers, one forward pass for all of them (section 3.5).

    Args:
      model: a ScalarModel; its dropout is applied if its rate is above 0.

    Returns:
      A loss of a `RankingBatch`; its weight counts prompts.
    """

    def loss(params: Any, batch: RankingBatch, key: jax.Array):
        rewards = rewards_of(model, params, batch, deterministic=model.config.dropout == 0, key=key)
        ranked = by_prompt(rewards, batch.scores, batch.valid)
        metrics = {"accuracy": losses.ranking_accuracy(*ranked), "padding": padding(batch.segments)}
        return losses.ranking_loss(*ranked), metrics

    return loss


def padding(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of a batch that is computed in vain, as a pair (sum, weight): columns [B, T] of no segment."""
    return jnp.sum(segments == 0).astype(jnp.float32), jnp.asarray(segments.size, jnp.float32)


def rewards_of(
    model: Any, params: Any, batch: RankingBatch, *, deterministic: bool = True, key: jax.Array | None = None
) -> jax.Array:
    """The reward [B, S, K] of each answer, read at its last token (EOS)."""
    outputs = model.apply(
        {"params": params},
        batch.tokens,
        batch.segments,
        batch.positions,
        branches=batch.branches,
        deterministic=deterministic,
        rngs=None if key is None else {"dropout": key},
    )
    rewards = jax.vmap(lambda row, ends: row[ends])(outputs, batch.ends)
    consistency.require_floating(rewards=rewards)
    return rewards


def answer_log_probs(model: Any, params: Any, batch: RankingBatch) -> jax.Array:
    """log pi(answer | prompt), [B, S, K]: the sum over the answer's tokens, 0 where there is no answer.

    Args:
      model: a LanguageModel; its dropout is not applied.
      params: its weights.
      batch: what it is asked about.
    """
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.segments, batch.positions, branches=batch.branches, method="hidden"
    )
    before = jax.vmap(lambda row, columns: row[columns])(hidden, predictors(batch))
    log_probs = unembedding.read_logits(model, params, before, batch.tokens, batch.branches, losses.log_probs)
    _, prompts, answers = batch.valid.shape
    # Each answer has a number in its row; 0 is for what belongs to none.
    number = jnp.where(batch.branches > 0, (batch.segments - 1) * answers + batch.branches, 0)
    total = functools.partial(jax.ops.segment_sum, num_segments=prompts * answers + 1)
    return jax.vmap(total)(log_probs, number)[:, 1:].reshape(batch.valid.shape)


def predictors(batch: RankingBatch) -> jax.Array:
    """The column [B, T] of the token before each: for the first token of an answer, the last of the prompt."""
    columns = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    prompt_end = jax.lax.cummax(jnp.where(batch.branches == 0, columns, 0), axis=1)
    first = batch.branches != jnp.pad(batch.branches, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(first & (batch.branches > 0), prompt_end, jnp.maximum(columns - 1, 0))


def by_prompt(*arrays: jax.Array) -> list[jax.Array]:
    """Arrays [B, S, K] of answers as [B S, K], a prompt a row, for the equations of `losses.py`."""
    return [array.reshape(-1, array.shape[-1]) for array in arrays]
