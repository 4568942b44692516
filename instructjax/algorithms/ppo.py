"""PPO and PPO-ptx as one pure function (sections 3.5 and appendix C.4).

An iteration samples a response to each prompt, scores it, spreads the score and the
KL penalty over its tokens, computes advantages, and updates the policy and the value
network on minibatches:

    objective = E[ clipped surrogate of (r(x, y) - beta log pi(y|x) / pi_init(y|x)) ]
                + gamma E_text[ log pi(text) ]

The expectations are means over tokens. The paper does not say how it normalises the
second term; gamma is a config key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from instructjax import losses
from instructjax.batch import Episodes, LMBatch, PromptBatch
from instructjax.models.partitioning import constrain_rows
from instructjax.rollout import consistency, episode, refilling, sampling
from instructjax.rollout.episode import Experience
from instructjax.training import objectives
from instructjax.training import state as train_state
from instructjax.training.state import Params, TrainState
from instructjax.training.step import (
    Loss,
    Maximum,
    Metrics,
    finite_update,
    gather_rows,
    merge_interleaved,
    over_devices,
    own_rows,
    split_interleaved,
    summed_gradient,
)

Array = jax.Array


@flax.struct.dataclass
class PPOState:
    """What an iteration changes.

    Attributes:
      step: int32 scalar, the number of iterations made.
      policy: the policy with its moving average, which is what is evaluated.
      value: the value network, started from the reward model.
    """

    step: Array
    policy: TrainState
    value: TrainState


@flax.struct.dataclass
class Frozen:
    """What an iteration reads only.

    Attributes:
      reference: the initial policy's weights, which the KL penalty is taken to.
      reward: the reward model's weights, its offset included.
    """

    reference: Params
    reward: Params


@dataclasses.dataclass(frozen=True)
class Iteration:
    """`iterate(state, (prompts, text), key, frozen) -> (state, metrics)`, and the three parts that it has.

    Attributes:
      step: the iteration itself.
      rollout: `rollout(policy, prompts, key) -> (episodes, tokens decoded)`, those of rows that were done included.
      observe: `observe(state, frozen, episodes) -> (experience, metrics)`.
      update: `update(state, experience, text, key) -> (state, metrics)`, of one minibatch.
    """

    step: Callable[[PPOState, tuple[PromptBatch, LMBatch | None], Array, Frozen], tuple[PPOState, Metrics]]
    rollout: Callable[[Params, PromptBatch, Array], tuple[Episodes, Array]]
    observe: Callable[[PPOState, Frozen, Episodes], tuple[Experience, Metrics]]
    update: Callable[[PPOState, Experience, LMBatch | None, Array], tuple[PPOState, Metrics]]

    def __call__(
        self, state: PPOState, batch: tuple[PromptBatch, LMBatch | None], key: Array, frozen: Frozen
    ) -> tuple[PPOState, Metrics]:
        """The whole iteration."""
        return self.step(state, batch, key, frozen)


def make_iteration(
    policy_model: Any,
    scalar_model: Any,
    policy_optimizer: optax.GradientTransformation,
    value_optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    *,
    reward_model: Any = None,
    max_response: int,
    eos_id: int,
    pad_id: int,
    axis_name: str | None = None,
) -> Iteration:
    """Builds `iterate(state, (prompts, text), key, frozen) -> (state, metrics)`.

    With text, the policy learns from the ptx term too (PPO-ptx); with None it does not
    (PPO, gamma = 0). The key is the run's root key.

    Args:
      policy_model: a LanguageModel, for policy and reference.
      scalar_model: a ScalarModel, for the value and, as in the paper, the reward.
      policy_optimizer: makes one update per minibatch.
      value_optimizer: the same for the value network.
      config: the `ppo` section of a recipe.
      reward_model: scores episodes in its place, such as a `RewardFunction`; None is `scalar_model`.
      max_response: R, tokens.
      eos_id: ends a response.
      pad_id: fills a row after its end.
      axis_name: the mapped axis, under pmap; statistics and minibatches are global all the same.
    """
    minibatches = config.batch_size // config.minibatch_size
    reward_model = reward_model or scalar_model

    ends = {"max_response": max_response, "eos_id": eos_id, "pad_id": pad_id}

    def rollout(policy: Params, prompts: PromptBatch, key: Array) -> tuple[Episodes, Array]:
        rows = prompts.tokens.shape[0]
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
        batch = prompts, sampling.row_keys(key, rows, first)
        choose, at_once = sampling.categorical(config.temperature), rows // config.rollout_parts
        if config.rollout_refill:
            refill = config.rollout_refill
            return refilling.sample(policy_model, policy, *batch, choose, rows=at_once, refill=refill, **ends)

        def sample(part: tuple[PromptBatch, Array]) -> tuple[Episodes, Array]:
            return sampling.sample(policy_model, policy, *constrain_rows(part), choose, **ends)

        episodes, decoded = jax.lax.map(sample, split_interleaved(batch, config.rollout_parts))
        return merge_interleaved(episodes), decoded.sum()

    def forward(state: PPOState, frozen: Frozen, episodes: Episodes) -> tuple[Array, Array, Array, Array, Array]:
        """All four networks over some episodes: log π, log π_ref, values, reward model, entropy."""

        def read(logits: Array, tokens: Array) -> tuple[Array, Array]:
            logits /= config.temperature
            return losses.log_probs(logits, tokens), losses.entropy(logits)

        log_probs, entropy = episode.read_response(policy_model, state.policy.params, episodes, read)
        ref_log_probs = episode.response_log_probs(policy_model, frozen.reference, episodes, config.temperature)
        values = episode.response_values(scalar_model, state.value.params, episodes)
        outputs = reward_model.apply({"params": frozen.reward}, episodes.tokens, episodes.segments, episodes.positions)
        return log_probs, ref_log_probs, values, outputs, entropy

    def observe(state: PPOState, frozen: Frozen, episodes: Episodes) -> tuple[Experience, Metrics]:
        """What the four networks say of this device's episodes, and what follows from it.

        As many rows at a time as a microbatch has: logits of the whole batch are never held, and
        the products of matrices have the shapes of the update's, which round alike.
        """
        hands = split_interleaved(episodes, minibatches * config.microbatches)
        parts = jax.lax.map(lambda part: forward(state, frozen, constrain_rows(part)), hands)
        log_probs, ref_log_probs, values, outputs, entropy = merge_interleaved(parts)
        mask = episodes.response_mask
        scores = episode.at_last_token(outputs, episodes.segments)
        consistency.require_floating(scores=scores)
        score_read_error = consistency.score_read_error(scores, outputs, episodes, eos_id)
        ended = episode.ended(episodes, eos_id)
        scores = jnp.where(ended, scores, scores - config.missing_eos_penalty)
        rewards = losses.kl_rewards(scores, log_probs, ref_log_probs, mask, config.kl_coefficient)
        advantages, returns = losses.gae(rewards, values, mask, config.discount, config.gae_lambda)
        advantages = losses.whiten(advantages, mask, axis_name=axis_name)
        consistency.require_floating(values=values, rewards=rewards, advantages=advantages, returns=returns)
        log_ratio = (log_probs - ref_log_probs) * mask
        sampler_log_ratio = (log_probs - episodes.log_probs) * mask
        kl = log_ratio.sum(axis=1)
        one = jnp.ones_like(scores)
        metrics = {
            "reward": (scores.sum(), one.sum()),
            "kl": (kl.sum(), one.sum()),  # nats per episode
            "max_abs_kl": Maximum(jnp.abs(kl).max()),
            # What must be 0; see runs/invariants.py.
            "initial_kl": jax.tree.map(
                lambda x: jnp.where(state.step == 0, x, 0.0), losses.masked_sum(0.5 * jnp.square(log_ratio), mask)
            ),
            "sampler_deviation": Maximum(jnp.abs(sampler_log_ratio).max()),
            "sampler_kl": losses.masked_sum(0.5 * jnp.square(sampler_log_ratio), mask),
            "score_read_error": Maximum(score_read_error),
            "reward_placement_error": Maximum(
                consistency.reward_placement_error(rewards, scores, config.kl_coefficient * log_ratio, episodes, eos_id)
            ),
            "entropy": ((entropy * mask).sum(), mask.sum()),
            "response_tokens": (mask.sum(), one.sum()),
            "padding": objectives.padding(episodes.segments),
            "missing_eos": ((~ended).sum().astype(jnp.float32), one.sum()),
            "value": (values.sum(), mask.sum()),
            "return": ((returns * mask).sum(), mask.sum()),
            "explained_variance": (
                losses.explained_variance(values, returns, mask, axis_name) * one.sum(),
                one.sum(),
            ),
        }
        return (
            Experience(
                episodes=episodes,
                log_probs=log_probs,
                ref_log_probs=ref_log_probs,
                values=values,
                scores=scores,
                advantages=advantages,
                returns=returns,
            ),
            metrics,
        )

    def policy_loss(params: Params, batch: Experience, key: Array):
        del key  # no dropout in PPO: the ratio must be 1 before any update
        mask = batch.episodes.response_mask
        log_probs = episode.response_log_probs(policy_model, params, batch.episodes, config.temperature)
        pair, metrics = losses.policy_loss(log_probs, batch.log_probs, batch.advantages, mask, config.clip_ratio)
        return pair, {
            **metrics,
            "max_ratio_deviation": Maximum(losses.ratio_deviation(log_probs, batch.log_probs, mask)),
            "mask_mismatches": Maximum(consistency.mask_mismatches(batch.episodes, eos_id)),
        }

    def value_loss(params: Params, batch: Experience, key: Array):
        del key
        values = episode.response_values(scalar_model, params, batch.episodes)
        return losses.value_loss(values, batch.values, batch.returns, batch.episodes.response_mask, config.clip_value)

    ptx_loss = objectives.language_model_loss(policy_model)

    def update(state: PPOState, batch: Experience, text: LMBatch | None, key: Array) -> tuple[PPOState, Metrics]:
        def over_episodes(loss: Loss, params: Params) -> tuple[tuple[Params, Array], Metrics]:
            return summed_gradient(loss, params, batch, key, microbatches=config.microbatches, axis_name=axis_name)

        pair, metrics = over_episodes(policy_loss, state.policy.params)
        gradient, loss = losses.mean(*pair), metrics["loss"][0]
        if text is not None:
            ptx_pair, ptx_metrics = summed_gradient(
                ptx_loss, state.policy.params, text, key, microbatches=config.ptx_microbatches, axis_name=axis_name
            )
            gradient, loss = losses.ppo_ptx(pair, ptx_pair, config.ptx_coefficient), loss + ptx_metrics["loss"][0]
            metrics["ptx_loss"] = ptx_metrics["loss"]
        policy, metrics = finite_update(state.policy, gradient, loss, metrics, policy_optimizer)
        pair, value_metrics = over_episodes(value_loss, state.value.params)
        loss = value_metrics["loss"][0]
        value, value_metrics = finite_update(state.value, losses.mean(*pair), loss, value_metrics, value_optimizer)
        metrics = {f"policy_{name}" if name == "loss" else name: metric for name, metric in metrics.items()}
        metrics.update({f"value_{name}": metric for name, metric in value_metrics.items()})
        return state.replace(policy=policy, value=value), metrics

    def iterate(
        state: PPOState, batch: tuple[PromptBatch, LMBatch | None], key: Array, frozen: Frozen
    ) -> tuple[PPOState, Metrics]:
        prompts, text = batch
        sample_key, shuffle_key, update_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        episodes, decoded = rollout(state.policy.params, prompts, sample_key)
        experience, rollout_metrics = observe(state, frozen, episodes)
        # The first token of a response comes from its prompt.
        needed = (episodes.response_mask.sum(axis=1) - 1).sum()
        rollout_metrics["rollout_padding"] = decoded - needed, jnp.maximum(decoded, 1).astype(jnp.float32)
        rollout_metrics = over_devices(rollout_metrics, axis_name)
        experience = gather_rows(experience, axis_name)
        # The pipeline has shuffled the text already: window i goes to minibatch i mod n.
        windows = split_interleaved(text, minibatches)

        def minibatch(state, rows_and_windows):
            rows, windows, number = rows_and_windows
            part = constrain_rows(jax.tree.map(lambda x: x[own_rows(rows, axis_name)], experience))
            return update(state, part, constrain_rows(windows), jax.random.fold_in(update_key, number))

        def epoch(state, number):
            order = jax.random.permutation(jax.random.fold_in(shuffle_key, number), config.batch_size)
            numbers = number * minibatches + jnp.arange(minibatches)
            return jax.lax.scan(minibatch, state, (order.reshape(minibatches, -1), windows, numbers))

        state, updates = jax.lax.scan(epoch, state, jnp.arange(config.epochs))
        first = jax.tree.map(lambda x: x[0, 0], updates)
        metrics = {
            **rollout_metrics,
            **_total(updates),
            "first_ratio_deviation": first["max_ratio_deviation"],
            "first_approx_kl": first["approx_kl"],
        }
        policy = train_state.update_average(state.policy, config.ema_decay)
        return state.replace(step=state.step + 1, policy=policy), metrics

    return Iteration(step=iterate, rollout=rollout, observe=observe, update=update)


def _total(stacked: Metrics) -> Metrics:
    """Sums of pairs and maxima of maxima over [epochs, minibatches]."""
    return {
        name: Maximum(value.value.max()) if isinstance(value, Maximum) else (value[0].sum(), value[1].sum())
        for name, value in stacked.items()
    }
