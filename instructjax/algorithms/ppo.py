"""PPO and PPO-ptx as one pure function (section 3.5 and appendix C.4).

    objective = E[ clipped surrogate of (r(x, y) - beta log pi(y|x) / pi_init(y|x)) ]
                + gamma E_text[ log pi(text) ]

The expectations are means over tokens. The paper does not say how it normalizes the
second term; gamma is a config key.

`Iteration.step` is the algorithm, top to bottom:

    1. sample     responses to prompts
    2. read       episodes with policy, reference, critic and scorer
    3. score      each response at its last token
    4. reward     each token: the KL penalty, and the score at the end
    5. estimate   advantages, and returns for the critic
    6. update     policy and critic on minibatches, for some epochs
    7. average    the policy's weights

Steps 2 to 5 are in `ppo_observe.py`, and step 6 is in `ppo_update.py`. The critic and the advantage estimator are
arguments: without a critic and with `per_response(leave_one_out)`, the same function is RLOO. In the first
`value_warmup_iterations` only the critic learns: the policy, its average and beta stay as they are.

If a Python function gives the scores, an iteration is two programs, and the host scores the
responses in between: `Iteration.sample` is step 1, and `Iteration.learn` the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax import losses
from instructjax.algorithms import ppo_metrics
from instructjax.algorithms.advantages import Estimator
from instructjax.algorithms.ppo_observe import Observe
from instructjax.algorithms.ppo_state import Frozen, Learner, PPOState
from instructjax.algorithms.ppo_update import Update
from instructjax.batch import Episodes, LMBatch, PromptBatch
from instructjax.errors import ConfigError
from instructjax.models.lora import WithBase
from instructjax.models.partitioning import constrain_rows
from instructjax.rollout import refilling, sampling
from instructjax.rollout.episode import Experience
from instructjax.training import metrics as metrics_lib
from instructjax.training import rows
from instructjax.training import state as train_state
from instructjax.training.metrics import Mean, Metric, Metrics
from instructjax.training.rows import merge_interleaved, split_interleaved
from instructjax.training.state import Params
from instructjax.typing import TokenIds

Array = jax.Array
Batch = tuple[PromptBatch, LMBatch | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Iteration:
    """A pure function `iterate(state, (prompts, text), key, frozen) -> (state, metrics)` and its parts.

    Attributes:
      policy: the policy; its model is also used for the reference.
      scorer: the reward model; not used by `sample` and `learn`.
      critic: the value network; None if the estimator needs none.
      advantages: the advantage estimator.
      config: the `ppo` section of a recipe.
      max_response: R, the most tokens a response may have.
      eos_id: ends a response.
      pad_id: fills a row after its end.
      samples_per_prompt: responses to each prompt of the batch.
      axis_name: the mapped axis, under pmap; statistics and minibatches are still global.
    """

    policy: Learner
    scorer: Any
    critic: Learner | None
    advantages: Estimator
    config: ml_collections.ConfigDict
    max_response: int
    eos_id: TokenIds
    pad_id: int
    samples_per_prompt: int
    axis_name: str | None

    @property
    def minibatches(self) -> int:
        """Updates per epoch."""
        return self.config.batch_size // self.config.minibatch_size

    @property
    def update(self) -> Update:
        """Returns the update on a minibatch: `update(state, minibatch, text) -> (state, metrics)`."""
        return Update(self.policy, self.critic, self.config, self.eos_id, self.axis_name)

    @property
    def observe(self) -> Observe:
        """Steps 2 to 5: `observe(state, frozen, episodes, scores=None) -> (experience, metrics)`."""
        parts = self.policy, self.scorer, self.critic, self.advantages, self.config, self.eos_id, self.axis_name
        return Observe(*parts, parts=self.minibatches * self.config.microbatches)

    def on(self, bases: Sequence[Params]) -> Iteration:
        """Returns the iteration of networks of which only adapters and heads learn; see models/lora.py.

        States and frozen weights then have only these.

        Args:
          bases: arguments of the compiled program: the base of the policy and the reference, and that of scorer and
            critic if it is another. Without any, all weights learn.
        """
        if not bases:
            return self
        policy, scalar = bases[0], bases[-1]
        critic = self.critic and dataclasses.replace(self.critic, model=WithBase(self.critic.model, scalar))
        return dataclasses.replace(
            self,
            policy=dataclasses.replace(self.policy, model=WithBase(self.policy.model, policy)),
            scorer=WithBase(self.scorer, scalar),
            critic=critic,
        )

    def __call__(self, state: PPOState, batch: Batch, key: Array, frozen: Frozen) -> tuple[PPOState, Metrics]:
        """Runs one iteration; see `step`."""
        return self.step(state, batch, key, frozen)

    def step(self, state: PPOState, batch: Batch, key: Array, frozen: Frozen) -> tuple[PPOState, Metrics]:
        """Runs one iteration (algorithm of appendix C.4).

        Args:
          state: before the iteration.
          batch: `config.batch_size / samples_per_prompt` prompts over all devices, and pretraining text
            for the ptx term (PPO-ptx) or None (PPO).
          key: the run's root key; the iteration's number is folded in, so a resumed run draws the same numbers.
          frozen: reference and reward model.
        """
        prompts, text = batch
        sample_key, shuffle_key = self._keys(state, key)
        # 1. The environment is a bandit: a random prompt, one response to it (section 3.5, "Reinforcement learning").
        episodes, decoded = self.rollout(state.policy.params, prompts, sample_key)
        # 2. to 5. Episodes are read once; log-probabilities, values and advantages are then fixed.
        experience, metrics = self.observe(state, frozen, episodes)
        metrics = metrics_lib.reduce(metrics | ppo_metrics.decoding(episodes, decoded), self.axis_name)
        state, adapted = self._adapt_kl_coefficient(state, metrics["kl"])
        # 6. and 7.
        state, updates = self._update_all(state, experience, text, shuffle_key)
        return state, metrics | updates | adapted

    def sample(self, state: PPOState, prompts: PromptBatch, key: Array) -> tuple[Episodes, Metrics]:
        """Samples the episodes that `step` would sample: step 1 of an iteration whose scores the host gives.

        Args:
          state: before the iteration.
          prompts: see `step`.
          key: the run's root key.
        """
        sample_key, _ = self._keys(state, key)
        episodes, decoded = self.rollout(state.policy.params, prompts, sample_key)
        return episodes, metrics_lib.reduce(ppo_metrics.decoding(episodes, decoded), self.axis_name)

    def learn(
        self, state: PPOState, batch: tuple[Episodes, Array, LMBatch | None], key: Array, frozen: Frozen
    ) -> tuple[PPOState, Metrics]:
        """Learns from episodes that `sample` returned: steps 2 to 7 of an iteration whose scores the host gives.

        Args:
          state: before the iteration.
          batch: the episodes, their scores [B], and pretraining text or None.
          key: the run's root key.
          frozen: see `step`; its reward model is not read.
        """
        episodes, scores, text = batch
        _, shuffle_key = self._keys(state, key)
        experience, metrics = self.observe(state, frozen, episodes, scores)
        metrics = metrics_lib.reduce(metrics, self.axis_name)
        state, adapted = self._adapt_kl_coefficient(state, metrics["kl"])
        state, updates = self._update_all(state, experience, text, shuffle_key)
        return state, metrics | updates | adapted

    def _keys(self, state: PPOState, key: Array) -> tuple[Array, Array]:
        """Returns the keys of an iteration's samples and shuffles. Its updates draw nothing."""
        sample_key, shuffle_key = jax.random.split(jax.random.fold_in(key, state.step))
        return sample_key, shuffle_key

    def rollout(self, policy: Params, prompts: PromptBatch, key: Array) -> tuple[Episodes, Array]:
        """Samples `samples_per_prompt` responses to each prompt from the full softmax, without top-k or top-p.

        A row's tokens depend on its number in the global batch, not on devices, microbatches or neighbors. Responses to
        a prompt share its prefill, unless idle rows are refilled. With several `rollout_widths`, parts consist of
        prompts of similar lengths.

        Returns:
          Episodes, with the responses to a prompt next to each other, and the number of decoded tokens, including
          those of idle rows.
        """
        config, samples = self.config, self.samples_per_prompt
        size = prompts.tokens.shape[0] * samples
        first = rows.first_row(size, self.axis_name)
        keys = sampling.row_keys(key, size, first)
        choose = sampling.categorical(config.temperature)
        ends: dict[str, Any] = {"max_response": self.max_response, "eos_id": self.eos_id, "pad_id": self.pad_id}

        def sample(part: tuple[PromptBatch, Array]) -> tuple[Episodes, Array]:
            prompts, keys = constrain_rows(part)
            given = self.policy.model, policy, prompts, keys.reshape(-1), choose
            if config.rollout_widths == 1:
                episodes, decoded = sampling.sample(*given, **ends)
            else:
                widths = sampling.halved(prompts.tokens.shape[1], config.rollout_widths)
                episodes, decoded = sampling.sample_narrow(*given, widths=widths, **ends)
            return jax.tree.map(lambda x: x.reshape(-1, samples, *x.shape[1:]), episodes), decoded

        if config.rollout_refill:  # each row has a prefill of its own
            repeated = constrain_rows(jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prompts))
            at_a_time = {"rows": size // config.rollout_parts, "refill": config.rollout_refill}
            episodes, decoded = refilling.sample(self.policy.model, policy, repeated, keys, choose, **at_a_time, **ends)
        else:
            groups = prompts, keys.reshape(-1, samples)
            order = None if config.rollout_widths == 1 else _shortest_first(prompts, config.rollout_parts)
            groups = groups if order is None else jax.tree.map(lambda x: x[order], groups)
            episodes, decoded = jax.lax.map(sample, split_interleaved(groups, config.rollout_parts))
            episodes = merge_interleaved(episodes)
            if order is not None:
                episodes = jax.tree.map(lambda x: x[jnp.argsort(order)], episodes)
            episodes = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)
            decoded = decoded.sum()
        group = (first + jnp.arange(size, dtype=jnp.int32)) // samples
        return episodes.replace(group=group), decoded

    def _adapt_kl_coefficient(self, state: PPOState, kl: Metric) -> tuple[PPOState, Metrics]:
        """Moves β towards the KL `kl_target`, if there is one (Ziegler et al. 2019, section 2.2)."""
        beta, config = state.kl_coefficient, self.config
        if beta is None:
            return state, {}
        assert isinstance(kl, Mean)
        found, share = kl.total / kl.weight, config.batch_size / config.kl_horizon
        adapted = losses.adapted_kl_coefficient(beta, found, config.kl_target, share)
        adapted = jnp.where(jnp.isfinite(found), adapted, beta)  # the updates of such an iteration are skipped, too
        adapted = self._after_warmup(state, adapted, beta)
        return state.replace(kl_coefficient=adapted), {"kl_coefficient": Mean(beta, jnp.ones_like(beta))}

    def _after_warmup(self, state: PPOState, usual: Any, before: Any) -> Any:
        """Returns `usual`, but `before` while only the critic learns; without such iterations no choice is compiled."""
        warmup = self.config.value_warmup_iterations
        return jnp.where(state.step < warmup, before, usual) if warmup else usual

    def _update_all(
        self, state: PPOState, experience: Experience, text: LMBatch | None, shuffle_key: Array
    ) -> tuple[PPOState, Metrics]:
        """Updates on the rows of all devices, and averages the policy: steps 6 and 7."""
        # 6. Minibatches are drawn from the rows of all devices (appendix C.4: 8 minibatches, a single epoch).
        experience = rows.gather_rows(experience, self.axis_name)
        state, updates = self._epochs(state, experience, text, shuffle_key)
        # 7. The average is what is evaluated (appendix C.4: decay 0.992), one step per iteration.
        policy = train_state.update_average(state.policy, self._after_warmup(state, self.config.ema_decay, 1.0))
        return state.replace(step=state.step + 1, policy=policy), ppo_metrics.updates(updates)

    def _epochs(
        self, state: PPOState, experience: Experience, text: LMBatch | None, shuffle_key: Array
    ) -> tuple[PPOState, Metrics]:
        """Updates on all minibatches, in a new order each epoch; metrics are [epochs, minibatches]."""
        # The pipeline has already shuffled the text: window i goes to minibatch i mod n.
        windows = split_interleaved(text, self.minibatches)

        def minibatch(state: PPOState, given: tuple[Array, LMBatch | None]) -> tuple[PPOState, Metrics]:
            chosen, windows = given
            own = rows.own_rows(chosen, self.axis_name)
            part = constrain_rows(jax.tree.map(lambda x: x[own], experience))
            return self.update(state, part, constrain_rows(windows))

        def epoch(state: PPOState, number: Array) -> tuple[PPOState, Metrics]:
            order = jax.random.permutation(jax.random.fold_in(shuffle_key, number), self.config.batch_size)
            return jax.lax.scan(minibatch, state, (order.reshape(self.minibatches, -1), windows))

        return jax.lax.scan(epoch, state, jnp.arange(self.config.epochs))


def _shortest_first(prompts: PromptBatch, parts: int) -> Array:
    """Returns the order of prompts in which `split_interleaved` gives the shortest ones to the first of its parts."""
    order = jnp.argsort(jnp.sum(prompts.segments > 0, axis=1), stable=True)
    return order.reshape(parts, -1).T.reshape(-1)


def make_iteration(
    policy: Learner,
    scorer: Any,
    critic: Learner | None,
    advantages: Estimator,
    config: ml_collections.ConfigDict,
    *,
    max_response: int,
    eos_id: TokenIds,
    pad_id: int,
    samples_per_prompt: int = 1,
    axis_name: str | None = None,
) -> Iteration:
    """Builds an iteration from parts that fit together; see the attributes of `Iteration`.

        make_iteration(policy, reward_model, critic, gae(1.0, 0.95), config.ppo, ...)                              # PPO
        make_iteration(policy, reward_model, None, per_response(leave_one_out), ..., samples_per_prompt=4)        # RLOO
        make_iteration(policy, reward_model, None, per_response(group_relative), ..., samples_per_prompt=16)      # GRPO

    Raises:
      ConfigError: the estimator needs a critic or several samples, or the batch does not divide.
    """
    if advantages.needs_critic != (critic is not None):
        wanted, found = ("a", "none") if critic is None else ("no", "one")
        raise ConfigError(f"critic: expected {wanted} critic for this estimator of advantages, found {found}")
    if samples_per_prompt < 1 + advantages.needs_groups:
        raise ConfigError(
            f"samples_per_prompt: expected at least {1 + advantages.needs_groups} for this estimator of advantages, "
            f"found {samples_per_prompt}"
        )
    if config.batch_size % samples_per_prompt:
        raise ConfigError(
            f"samples_per_prompt: expected a divisor of batch_size ({config.batch_size}), found {samples_per_prompt}"
        )
    return Iteration(
        policy=policy,
        scorer=scorer,
        critic=critic,
        advantages=advantages,
        config=config,
        max_response=max_response,
        eos_id=eos_id,
        pad_id=pad_id,
        samples_per_prompt=samples_per_prompt,
        axis_name=axis_name,
    )
