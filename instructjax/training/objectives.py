"""Losses of whole batches: a model, a batch from `batch.py`, an equation from `losses.py`."""

from __future__ import annotations

from typing import Any

import jax

from instructjax import losses
from instructjax.batch import LMBatch, RankingBatch
from instructjax.rollout import consistency, episode
from instructjax.training.step import Loss


def language_model_loss(model: Any) -> Loss:
    """Cross-entropy of each token given those before it: pretraining, SFT and the ptx term.

    Args:
      model: a LanguageModel; its dropout is applied if its rate is above 0.

    Returns:
      A loss of an `LMBatch`, in nats; weights are `batch.weights`.
    """

    def loss(params: Any, batch: LMBatch, key: jax.Array):
        logits, _ = model.apply(
            {"params": params},
            batch.tokens,
            batch.segments,
            batch.positions,
            deterministic=model.config.dropout == 0,
            rngs=None if key is None else {"dropout": key},
        )
        # The token in column t is predicted at column t - 1.
        aligned = logits[:, :-1], batch.tokens[:, 1:], batch.weights[:, 1:]
        return losses.cross_entropy(*aligned), {"token_accuracy": losses.token_accuracy(*aligned)}

    return loss


def ranking_loss(model: Any) -> Loss:
    """-log sigmoid(r_w - r_l) over all pairs of a prompt's answers, one forward per answer (section 3.5).

    Args:
      model: a ScalarModel; its dropout is applied if its rate is above 0.

    Returns:
      A loss of a `RankingBatch`; its weight counts prompts.
    """

    def loss(params: Any, batch: RankingBatch, key: jax.Array):
        rewards = rewards_of(model, params, batch, deterministic=model.config.dropout == 0, key=key)
        accuracy = losses.ranking_accuracy(rewards, batch.scores, batch.valid)
        return losses.ranking_loss(rewards, batch.scores, batch.valid), {"accuracy": accuracy}

    return loss


def rewards_of(
    model: Any, params: Any, batch: RankingBatch, *, deterministic: bool = True, key: jax.Array | None = None
) -> jax.Array:
    """The reward [B, K] of each answer, read at its last token (EOS)."""
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (batch.tokens, batch.segments, batch.positions))
    rewards = episode.score(
        model, params, *flat, deterministic=deterministic, rngs=None if key is None else {"dropout": key}
    )
    consistency.require_floating(rewards=rewards)
    return rewards.reshape(batch.scores.shape)
