"""Losses of a model on a batch: each applies an equation of `losses.py` to a batch of `batch.py`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.batch import LMBatch, RankingBatch
from instructjax.models import unembedding
from instructjax.rollout import consistency
from instructjax.training.metrics import Mean, Metrics
from instructjax.training.state import Params
from instructjax.training.step import Loss


def language_model_loss(model: Any) -> Loss:
    """Builds the cross-entropy of each token given those before it: pretraining, SFT and the ptx term.

    Args:
      model: a LanguageModel; its dropout is applied if a rate is above 0.

    Returns:
      A loss of an `LMBatch`, in nats, weighted by `batch.weights`.
    """

    def loss(params: Params, batch: LMBatch, key: jax.Array | None) -> tuple[losses.Pair, Metrics]:
        hidden, _ = model.apply(
            {"params": params},
            batch.tokens,
            batch.segments,
            batch.positions,
            deterministic=not model.config.has_dropout,
            rngs=None if key is None else {"dropout": key},
            method="hidden",
        )
        # The token in column t is predicted at column t - 1.
        aligned = batch.weights[:, 1:], hidden[:, :-1], batch.tokens[:, 1:]
        weights, hidden, tokens = unembedding.weighted_first(*aligned)
        log_probs, right = unembedding.read_logits(
            model, params, hidden, tokens, weights, lambda *z: (losses.log_probs(*z), losses.is_most_likely(*z))
        )
        accuracy = Mean(*losses.masked_sum(right, weights))
        metrics: Metrics = {"token_accuracy": accuracy, "padding": padding(batch.segments)}
        return losses.cross_entropy(log_probs, weights), metrics

    return loss


def ranking_loss(model: Any) -> Loss:
    """Builds the reward model's loss: -log sigmoid(r_w - r_l) over all pairs of a prompt's answers (section 3.5).

    All answers to a prompt share one forward pass.

    Args:
      model: a ScalarModel; its dropout is applied if a rate is above 0.

    Returns:
      A loss of a `RankingBatch`; its weight counts prompts.
    """

    def loss(params: Params, batch: RankingBatch, key: jax.Array | None) -> tuple[losses.Pair, Metrics]:
        rewards = rewards_of(model, params, batch, deterministic=not model.config.has_dropout, key=key)
        ranked = by_prompt(rewards, batch.scores, batch.valid)
        metrics: Metrics = {"accuracy": Mean(*losses.ranking_accuracy(*ranked)), "padding": padding(batch.segments)}
        return losses.ranking_loss(*ranked), metrics

    return loss


def padding(segments: jax.Array) -> Mean:
    """Measures the share of the columns [B, T] that are padding, on which computation is wasted."""
    return Mean(jnp.sum(segments == 0).astype(jnp.float32), jnp.asarray(segments.size, jnp.float32))


def rewards_of(
    model: Any, params: Any, batch: RankingBatch, *, deterministic: bool = True, key: jax.Array | None = None
) -> jax.Array:
    """Computes the reward [B, S, K] of each answer, read at its last token (EOS)."""
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
    """Computes log pi(answer | prompt), [B, S, K], summed over the answer's tokens; 0 if there is no answer.

    Args:
      model: a LanguageModel; its dropout is not applied.
      params: its weights.
      batch: prompts with their answers.
    """
    return answer_sums(model, params, batch, losses.log_probs)


def answer_sums(model: Any, params: Any, batch: RankingBatch, read: unembedding.Read) -> Any:
    """Sums what `read` finds in the logits of each token over the tokens of each answer; see `answer_log_probs`.

    Returns:
      The pytree that `read` returns, with arrays [B, S, K].
    """
    hidden, _ = model.apply(
        {"params": params}, batch.tokens, batch.segments, batch.positions, branches=batch.branches, method="hidden"
    )
    before = jax.vmap(lambda row, columns: row[columns])(hidden, predictors(batch))
    found = unembedding.read_logits(model, params, before, batch.tokens, batch.branches, read)
    _, prompts, answers = batch.valid.shape
    # Number the answers of a row from 1; number 0 collects the tokens that belong to no answer.
    number = jnp.where(batch.branches > 0, (batch.segments - 1) * answers + batch.branches, 0)
    total = functools.partial(jax.ops.segment_sum, num_segments=prompts * answers + 1)
    return jax.tree.map(lambda x: jax.vmap(total)(x, number)[:, 1:].reshape(batch.valid.shape), found)


def predictors(batch: RankingBatch) -> jax.Array:
    """Returns the column [B, T] that precedes each token; for an answer's first token, the end of the prompt."""
    columns = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
    prompt_end = jax.lax.cummax(jnp.where(batch.branches == 0, columns, 0), axis=1)
    first = batch.branches != jnp.pad(batch.branches, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(first & (batch.branches > 0), prompt_end, jnp.maximum(columns - 1, 0))


def by_prompt(*arrays: jax.Array) -> list[jax.Array]:
    """Reshapes arrays [B, S, K] to [B S, K], one prompt per row, as `losses.py` expects them."""
    return [array.reshape(-1, array.shape[-1]) for array in arrays]
