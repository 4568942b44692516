"""Reads the episodes of a PPO iteration and rewards them: steps 2 to 5 (section 3.5, equation 2; appendix C.4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax import losses
from instructjax.algorithms import ppo_metrics
from instructjax.algorithms.advantages import Estimator
from instructjax.algorithms.ppo_metrics import Readings
from instructjax.algorithms.ppo_state import Frozen, Learner, PPOState
from instructjax.batch import Episodes
from instructjax.models.partitioning import constrain_rows
from instructjax.rollout import consistency, episode
from instructjax.rollout import packing as packing_lib
from instructjax.rollout.episode import Experience
from instructjax.training.metrics import Mean, Metrics
from instructjax.training.rows import merge_interleaved, split_interleaved
from instructjax.typing import TokenIds

Array = jax.Array
LARGEST_WEIGHT = 2.0  # truncates importance weights; weights in int8 change probabilities by far less


@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """A pure function `observe(state, frozen, episodes, scores=None) -> (experience, metrics)`.

    Attributes:
      policy: see `ppo.Iteration`, also for the next six.
      scorer: the reward model.
      critic: the value network.
      advantages: the advantage estimator.
      config: the `ppo` section of a recipe.
      eos_id: ends a response.
      axis_name: the mapped axis, under pmap.
      parts: microbatches of all minibatches; one of them is read at a time.
    """

    policy: Learner
    scorer: Any
    critic: Learner | None
    advantages: Estimator
    config: ml_collections.ConfigDict
    eos_id: TokenIds
    axis_name: str | None
    parts: int

    def __call__(
        self, state: PPOState, frozen: Frozen, episodes: Episodes, scores: Array | None = None
    ) -> tuple[Experience, Metrics]:
        """Reads, scores and rewards this device's episodes, and estimates their advantages: steps 2 to 5.

        Args:
          state: before the iteration.
          frozen: reference and reward model.
          episodes: see `rollout`.
          scores: float32[B], instead of the scorer's.
        """
        config, mask = self.config, episodes.response_mask
        assert episodes.group is not None  # these rows are not packed
        # 2. Full forward passes over the sampled ids, as in the update: at its first minibatch the ratio is 1.
        readings, padding = self._read(state, frozen, episodes, scores)
        # 3. The scorer's output at the last token (section 3.5); a response without EOS pays a penalty.
        consistency.require_floating(scores=readings.rewards)
        outcome = episode.at_last_token(readings.rewards, episodes.segments)
        ended, scaled = episode.ended(episodes, self.eos_id), self._scale(outcome)
        scores = jnp.where(ended, scaled, scaled - config.missing_eos_penalty)
        # 4. A KL penalty per token against the initial policy (section 3.5, equation 2).
        log_probs = readings.log_probs, readings.ref_log_probs
        beta: float | Array = config.kl_coefficient if state.kl_coefficient is None else state.kl_coefficient
        rewards = losses.kl_rewards(scores, *log_probs, mask, beta)
        # 5. Over the whole batch, before it is cut into minibatches.
        learned = losses.whiten(rewards, mask, self.axis_name, shift_mean=False) if config.whiten_rewards else rewards
        advantages, returns = self.advantages.estimate(learned, mask, readings.values, episodes.group, self.axis_name)
        if self.policy.model.config.decoding_dtype:  # tokens were sampled from another distribution than the policy's
            advantages *= losses.importance_weights(readings.log_probs, episodes.log_probs, mask, LARGEST_WEIGHT)
        consistency.require_floating(rewards=rewards, advantages=advantages)
        if readings.values is not None and returns is not None:
            consistency.require_floating(values=readings.values, returns=returns)
        experience = Experience(
            episodes=episodes,
            log_probs=readings.log_probs,
            ref_log_probs=readings.ref_log_probs,
            values=readings.values,
            scores=scores,
            advantages=advantages,
            returns=returns,
        )
        first = state.step == 0
        return experience, {
            "padding": padding,
            **ppo_metrics.rollout(experience, readings, outcome, self.eos_id, self.axis_name),
            **ppo_metrics.checks(experience, readings, rewards, outcome, beta=beta, eos_id=self.eos_id, first=first),
        }

    def _scale(self, scores: Array) -> Array:
        """Scales and clips scores; by default neither is part of the program."""
        scale, most = self.config.reward_scale, self.config.reward_clip
        if scale != 1:
            scores = scale * scores
        return jnp.clip(scores, -most, most) if most else scores

    def _read(self, state: PPOState, frozen: Frozen, episodes: Episodes, scores: Array | None) -> tuple[Readings, Mean]:
        """Reads episodes with all networks, one microbatch at a time.

        So the logits of the whole batch are never in memory, and matmuls have the same shapes as in the update. If
        episodes are not packed, they also round as in the update.

        Returns:
          The readings, and the share of the columns read that are padding.
        """

        def read(part: Episodes) -> tuple[tuple[Array, Array, Array, Array | None], Array | None]:
            part = constrain_rows(part)
            model, temperature = self.policy.model, self.config.temperature
            policy = state.policy.params
            log_probs, entropy = episode.response_log_probs_and_entropy(model, policy, part, temperature)
            ref_log_probs = episode.response_log_probs(model, frozen.reference, part, temperature)
            values = None
            if self.critic is not None and state.value is not None:
                values = episode.response_values(self.critic.model, state.value.params, part)
            rewards = None
            if scores is None:
                rewards = self.scorer.apply({"params": frozen.reward}, part.tokens, part.segments, part.positions)
            return (log_probs, ref_log_probs, entropy, values), rewards

        if self.config.pack_episodes:
            packing = packing_lib.plan(episodes.segments, self.parts)
            parts = split_interleaved(packing.episodes(episodes), self.parts)
            of_rows = merge_interleaved(jax.lax.map(packing_lib.skip_empty(read), parts))
            of_tokens = packing.unpack_responses(of_rows[0], episodes.response_mask.shape[1])
            rewards = packing.unpack(of_rows[1])
        else:
            parts = split_interleaved(episodes, self.parts)
            of_tokens, rewards = merge_interleaved(jax.lax.map(read, parts))
        if scores is not None:
            rewards = jnp.broadcast_to(scores[:, None], episodes.tokens.shape)
        log_probs, ref_log_probs, entropy, values = of_tokens
        return Readings(log_probs, ref_log_probs, entropy, values, rewards), ppo_metrics.padding(parts)
