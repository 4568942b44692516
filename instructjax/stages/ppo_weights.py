"""The weights that PPO starts from: of four networks, or of their adapters on one base or two."""

from __future__ import annotations

import dataclasses

import jax
import ml_collections

from instructjax.algorithms.ppo import Frozen, PPOState
from instructjax.models import lora
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import ScalarModel, graft_trunk
from instructjax.stages.adapter_base import Base
from instructjax.stages.stage import Stage
from instructjax.stages.trained import initial_params
from instructjax.training.state import Params

_HEAD = 2**31 - 1  # folded into the stage's key for a fresh value head; no iteration has this number


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights before the first iteration. With adapters, the first three are what learns; see models/lora.py.

    Attributes:
      policy: of the initial policy, which is also the reference.
      reward: of the reward model; None if a function gives the rewards.
      value: of the value network, with adapters if its start has none; None without a critic.
      bases: of the policy, and of the two others if they do not share it; () if all weights learn.
      base: where the first of them is saved.
    """

    policy: Params
    reward: Params | None
    value: Params | None
    bases: tuple[Params, ...]
    base: Base | None


def uses_reward_model(section: ml_collections.ConfigDict) -> bool:
    """Returns whether a reward model is loaded: always, except with a reward function and without `reward_from`.

    Args:
      section: the section `ppo` of a recipe, or one with the same keys.
    """
    return bool(section.reward_from or not section.reward_function)


def load(stage: Stage, policy: TransformerConfig, scalar: TransformerConfig, *, needs_critic: bool) -> Start:
    """Loads the initial policy and the reward model, if there is one.

    Args:
      stage: see `ppo.train`.
      policy: the policy's network.
      scalar: that of reward model and value network.
      needs_critic: whether there is a value network.

    Raises:
      CheckpointError: with `lora.one_base`, the reward model is not one of adapters on the policy's base.
    """
    initial = stage.run.load_start("ppo_init", stage.section.init_from)
    by_function = bool(stage.section.reward_function)
    if stage.lora is None:
        reward = _load_reward_model(stage)
        value = critic_start(stage, scalar, initial, reward) if needs_critic else None
        return Start(initial, None if by_function else reward, value, (), None)
    base, learned = stage.with_adapters(initial, policy)
    saved, one_base = stage.describe_base(base), stage.config.lora.one_base
    reward = _load_reward_model(stage, (saved, base) if one_base else None)
    value = critic_start(stage, scalar, initial, reward) if needs_critic else None
    reward_base, reward_learned = (base, None) if reward is None else lora.split(reward)
    return Start(
        learned,
        None if by_function else reward_learned,
        None if value is None else stage.with_adapters(value, scalar, 1)[1],
        (base,) if one_base or reward is None else (base, reward_base),
        saved,
    )


def _load_reward_model(stage: Stage, shared: tuple[Base, Params] | None = None) -> Params | None:
    """Returns the reward model's weights, on a base that is loaded already if one is given; None if it has no use."""
    if not uses_reward_model(stage.section):
        return None
    return stage.run.load_reward_model(stage.section.reward_from, adapters=stage.lora, shared=shared).params


def critic_start(stage: Stage, scalar: TransformerConfig, policy: Params, reward: Params | None) -> Params:
    """Returns the reward model's weights (appendix C.4), or without one, the policy's below a fresh scalar head.

    Args:
      stage: its seed draws the head.
      scalar: the value network.
      policy: the initial policy's weights, of the same trunk if there is no reward model.
      reward: the reward model's weights, or None.
    """
    if reward is not None:
        return reward
    return graft_trunk(initial_params(ScalarModel(scalar), jax.random.fold_in(stage.key, _HEAD)), policy)


def attached(frozen: Frozen, bases: tuple[Params, ...]) -> Frozen:
    """Returns reference and reward model as whole weights; no array is copied."""
    if not bases:
        return frozen
    reward = None if frozen.reward is None else lora.attach(bases[-1], frozen.reward)
    return Frozen(lora.attach(bases[0], frozen.reference), reward)


def with_whole_average(state: PPOState, bases: tuple[Params, ...]) -> PPOState:
    """Returns the state with the whole weights of the average; no array is copied."""
    if not bases:
        return state
    assert state.policy.ema is not None
    return state.replace(policy=state.policy.replace(ema=lora.attach(bases[0], state.policy.ema)))
