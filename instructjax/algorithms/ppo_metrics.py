"""The metrics of a PPO iteration, and checks of its consistency.

The checks are numbers that are 0, up to rounding, if rollout and update agree. `runs/invariants.py`
explains each of them and stops a run that exceeds a limit.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.batch import Episodes
from instructjax.rollout import consistency, episode
from instructjax.rollout.episode import Experience
from instructjax.training import metrics as metrics_lib
from instructjax.training.metrics import Maximum, Mean, Metrics
from instructjax.typing import TokenIds

Array = jax.Array


class Readings(flax.struct.PyTreeNode):
    """The networks' outputs on some episodes.

    Attributes:
      log_probs: [B, R] of the response's tokens under the policy.
      ref_log_probs: [B, R] the same, under the reference.
      entropy: [B, R] of the policy before each token, in nats.
      values: [B, R] the critic's values before each token; None without a critic.
      rewards: [B, P + R] the scorer's output for the text up to each token.
    """

    log_probs: Array
    ref_log_probs: Array
    entropy: Array
    values: Array | None
    rewards: Array


def rollout(
    experience: Experience, readings: Readings, outcome: Array, eos_id: TokenIds, axis_name: str | None
) -> Metrics:
    """Measures the episodes of an iteration: reward, KL, entropy, lengths, and the critic if there is one.

    docs/metrics.md describes each metric. Arguments are those of `checks`.
    """
    episodes, mask = experience.episodes, experience.episodes.response_mask
    assert experience.scores is not None  # the rows are not packed yet
    episode_kl, k2, k3 = losses.kl_estimates(experience.log_probs, experience.ref_log_probs, mask)
    rows = jnp.ones_like(experience.scores).sum()
    _, variance = losses.masked_moments(episode_kl, jnp.ones_like(episode_kl), axis_name)
    count = rows if axis_name is None else jax.lax.psum(rows, axis_name)
    metrics: Metrics = {
        "reward": Mean(outcome.sum(), rows),
        "shaped_reward": Mean(experience.scores.sum(), rows),
        "kl": Mean(episode_kl.sum(), rows),
        "kl_standard_error": Mean(jnp.sqrt(variance / count) * rows, rows),
        "kl_k2": Mean(k2.sum(), rows),
        "kl_k3": Mean(k3.sum(), rows),
        "max_abs_kl": Maximum(jnp.abs(episode_kl).max()),
        "entropy": Mean((readings.entropy * mask).sum(), mask.sum()),
        "response_tokens": Mean(mask.sum(), rows),
        "missing_eos": Mean((~episode.ended(episodes, eos_id)).sum().astype(jnp.float32), rows),
    }
    if experience.values is not None and experience.returns is not None:
        explained = losses.explained_variance(experience.values, experience.returns, mask, axis_name)
        metrics |= {
            "value": Mean(experience.values.sum(), mask.sum()),
            "return": Mean((experience.returns * mask).sum(), mask.sum()),
            "explained_variance": Mean(explained * rows, rows),
        }
    return metrics


def padding(parts: Episodes) -> Mean:
    """Measures the share of the columns that the networks read that are padding.

    Args:
      parts: rows [n, B / n, ...], padded or packed; parts without a token are not read.
    """
    inside = parts.segments > 0
    columns = inside.any(axis=(1, 2)).sum() * inside[0].size
    return Mean((columns - inside.sum()).astype(jnp.float32), columns.astype(jnp.float32))


def decoding(episodes: Episodes, decoded: Array) -> Metrics:
    """Measures the share of the decoded tokens that no response needed.

    Args:
      episodes: as sampled.
      decoded: number of tokens that the sampler decoded, including those of idle rows.
    """
    # The first token of a response comes from the prefill of its prompt.
    needed = (episodes.response_mask.sum(axis=1) - 1).sum()
    return {"rollout_padding": Mean(decoded - needed, jnp.maximum(decoded, 1).astype(jnp.float32))}


def checks(
    experience: Experience,
    readings: Readings,
    rewards: Array,
    outcome: Array,
    *,
    beta: float | Array,
    eos_id: TokenIds,
    first: Array,
) -> Metrics:
    """Measures whether sampler, networks, scores and rewards of a rollout agree with each other.

    Args:
      experience: of the rollout.
      readings: the outputs it was computed from.
      rewards: [B, R], of the tokens.
      outcome: [B], the scores as read, without the penalty for a missing EOS.
      beta: β, the KL coefficient.
      eos_id: ends a response.
      first: bool scalar, whether this is the first iteration, where policy and reference are the same.
    """
    episodes, mask = experience.episodes, experience.episodes.response_mask
    assert experience.scores is not None  # the rows are not packed yet
    log_ratio = (experience.log_probs - experience.ref_log_probs) * mask
    sampler_log_ratio = (experience.log_probs - episodes.log_probs) * mask
    initial_kl = Mean(*losses.masked_sum(0.5 * jnp.square(log_ratio), mask))
    return {
        "initial_kl": jax.tree.map(lambda x: jnp.where(first, x, 0.0), initial_kl),
        "sampler_deviation": Maximum(jnp.abs(sampler_log_ratio).max()),
        "sampler_kl": Mean(*losses.masked_sum(0.5 * jnp.square(sampler_log_ratio), mask)),
        "score_read_error": Maximum(consistency.score_read_error(outcome, readings.rewards, episodes, eos_id)),
        "reward_placement_error": Maximum(
            consistency.reward_placement_error(rewards, experience.scores, beta * log_ratio, episodes, eos_id)
        ),
    }


def policy_update(log_probs: Array, batch: Experience, metrics: dict[str, losses.Pair]) -> Metrics:
    """Adds the check of the ratio to the metrics of `losses.policy_loss`.

    Args:
      log_probs: [B, R], of the policy that is being updated.
      batch: the minibatch.
      metrics: the metrics of the loss.
    """
    deviation = losses.ratio_deviation(log_probs, batch.log_probs, batch.episodes.response_mask)
    return {**means(metrics), "max_ratio_deviation": Maximum(deviation)}


def means(pairs: dict[str, losses.Pair]) -> Metrics:
    """Turns the pairs that a loss returns into metrics."""
    return {name: Mean(*pair) for name, pair in pairs.items()}


def updates(stacked: Metrics) -> Metrics:
    """Summarizes the updates of an iteration, and reports the first separately: there the ratio must be 1.

    Args:
      stacked: metrics of arrays [epochs, minibatches].
    """
    first = jax.tree.map(lambda x: x[0, 0], stacked)
    return {
        **metrics_lib.collapse(stacked),
        "first_ratio_deviation": first["max_ratio_deviation"],
        "first_approx_kl": first["approx_kl"],
    }
