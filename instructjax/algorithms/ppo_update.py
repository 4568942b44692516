"""One update of PPO on a minibatch: step 6 of an iteration (section 3.5, equation 2; appendix C.4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections

from instructjax import losses
from instructjax.algorithms import ppo_metrics
from instructjax.algorithms.ppo_state import Learner, PPOState
from instructjax.batch import LMBatch
from instructjax.rollout import consistency, episode
from instructjax.rollout import packing as packing_lib
from instructjax.rollout.episode import Experience
from instructjax.training import metrics as metrics_lib
from instructjax.training import objectives
from instructjax.training.metrics import Maximum, Mean, Metrics
from instructjax.training.state import Params, TrainState
from instructjax.training.step import Loss, finite_update, summed_gradient
from instructjax.typing import TokenIds

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """A pure function `update(state, minibatch, text) -> (state, metrics)`. It draws nothing.

    Attributes:
      policy: the policy.
      critic: the value network; None if there is none.
      config: the `ppo` section of a recipe.
      eos_id: ends a response.
      axis_name: the mapped axis, under pmap.
    """

    policy: Learner
    critic: Learner | None
    config: ml_collections.ConfigDict
    eos_id: TokenIds
    axis_name: str | None

    def __call__(self, state: PPOState, batch: Experience, text: LMBatch | None) -> tuple[PPOState, Metrics]:
        """Updates the policy and the critic once."""

        batch, checks = self._packed(batch)

        def learn(policy: TrainState) -> tuple[TrainState, Metrics]:
            return self._update_policy(policy, batch, text, checks)

        if warmup := self.config.value_warmup_iterations:  # the critic learns alone
            nothing = metrics_lib.empty(jax.eval_shape(learn, state.policy)[1])
            policy, metrics = jax.lax.cond(state.step < warmup, lambda policy: (policy, nothing), learn, state.policy)
        else:
            policy, metrics = learn(state.policy)
        metrics["policy_loss"] = metrics.pop("loss")
        if self.critic is None or state.value is None:
            return state.replace(policy=policy), metrics
        skip = self.config.pack_episodes
        pair, value_metrics = self._gradient(self._value_loss, state.value.params, batch, skip=skip)
        loss, gradient = metrics_lib.total(value_metrics, "loss"), losses.mean(*pair)
        value, value_metrics = finite_update(state.value, gradient, loss, value_metrics, self.critic.optimizer)
        metrics |= {f"value_{name}": metric for name, metric in value_metrics.items()}
        return state.replace(policy=policy, value=value), metrics

    def _packed(self, batch: Experience) -> tuple[Experience, Metrics]:
        """Returns the rows that the networks read, packed if the recipe says so, and the check of their masks."""
        mismatches = consistency.mask_mismatches(batch.episodes, self.eos_id)
        if self.config.pack_episodes:
            packing, padded = packing_lib.plan(batch.episodes.segments, self.config.microbatches), batch.episodes
            batch = packing.experience(batch)
            mismatches += consistency.packing_mismatches(batch.episodes, padded, packing)
        return batch, metrics_lib.reduce({"mask_mismatches": Maximum(mismatches)}, self.axis_name)

    def _update_policy(
        self, state: TrainState, batch: Experience, text: LMBatch | None, checks: Metrics
    ) -> tuple[TrainState, Metrics]:
        """Updates the policy by the clipped surrogate and, with text, the ptx term."""
        pair, metrics = self._gradient(self._policy_loss, state.params, batch, skip=self.config.pack_episodes)
        metrics |= checks
        gradient, loss = losses.mean(*pair), metrics_lib.total(metrics, "loss")
        if text is not None:
            ptx_loss, microbatches = objectives.language_model_loss(self.policy.model), self.config.ptx_microbatches
            ptx_pair, ptx_metrics = self._gradient(ptx_loss, state.params, text, microbatches)
            gradient = losses.ppo_ptx(pair, ptx_pair, self.config.ptx_coefficient)
            loss = loss + metrics_lib.total(ptx_metrics, "loss")
            metrics["ptx_loss"] = ptx_metrics["loss"]
        return finite_update(state, gradient, loss, metrics, self.policy.optimizer)

    def _gradient(
        self, loss: Loss, params: Params, batch: Any, microbatches: int | None = None, *, skip: bool = False
    ) -> tuple[tuple[Params, Array], Metrics]:
        microbatches = microbatches or self.config.microbatches
        is_empty = (lambda rows: packing_lib.is_empty(rows.episodes)) if skip else None
        split: dict[str, Any] = {"microbatches": microbatches, "axis_name": self.axis_name, "is_empty": is_empty}
        # No key, because nothing is drawn: devices can sum the gradients of their microbatches.
        return summed_gradient(loss, params, batch, None, **split)

    def _policy_loss(self, params: Params, batch: Experience, key: None) -> tuple[losses.Pair, Metrics]:
        del key  # no dropout in PPO: the ratio must be 1 before any update
        mask, bonus = batch.episodes.response_mask, self.config.entropy_coefficient
        model, temperature = self.policy.model, self.config.temperature
        if bonus:
            log_probs, entropy = episode.response_log_probs_and_entropy(model, params, batch.episodes, temperature)
        else:
            log_probs = episode.response_log_probs(model, params, batch.episodes, temperature)
        ratio = log_probs, batch.log_probs
        pair, metrics = losses.policy_loss(*ratio, batch.advantages, mask, self.config.clip_ratio)
        found = ppo_metrics.policy_update(log_probs, batch, metrics)
        if bonus:  # Σ and weight are over the same tokens
            total, weight = losses.masked_sum(entropy, mask)
            pair = pair[0] - bonus * total, pair[1]
            found["update_entropy"] = Mean(total, weight)
        return pair, found

    def _value_loss(self, params: Params, batch: Experience, key: None) -> tuple[losses.Pair, Metrics]:
        del key
        assert self.critic is not None and batch.values is not None and batch.returns is not None
        values, mask = episode.response_values(self.critic.model, params, batch.episodes), batch.episodes.response_mask
        pair, metrics = losses.value_loss(values, batch.values, batch.returns, mask, self.config.clip_value)
        return pair, ppo_metrics.means(metrics)
