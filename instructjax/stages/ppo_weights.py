"""The weights that PPO starts from: of four networks, or of their adapters on one base or two."""

from __future__ import annotations

import dataclasses

from instructjax.algorithms.ppo import Frozen, PPOState
from instructjax.models import lora
from instructjax.models.config import TransformerConfig
from instructjax.stages.base import Base
from instructjax.stages.stage import Stage
from instructjax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights before the first iteration. With adapters, the first three are what learns; see models/lora.py.

    Attributes:
      policy: of the initial policy, which is also the reference.
      reward: of the reward model.
      value: of the value network: the reward model's, with adapters if that has none.
      bases: of the policy, and of the two others if they do not share it; () if all weights learn.
      base: where the first of them is saved.
    """

    policy: Params
    reward: Params
    value: Params
    bases: tuple[Params, ...]
    base: Base | None


def load(stage: Stage, policy: TransformerConfig, scalar: TransformerConfig) -> Start:
    """Loads the initial policy and the reward model.

    Args:
      stage: see `ppo.train`.
      policy: the policy's network.
      scalar: that of reward model and value network.

    Raises:
      CheckpointError: with `lora.one_base`, the reward model is not one of adapters on the policy's base.
    """
    run, section = stage.run, stage.section
    initial = run.load_start("ppo_init", section.init_from)
    if stage.lora is None:
        reward = run.load_reward_model(section.reward_from).params
        return Start(initial, reward, reward, (), None)
    base, learned = stage.with_adapters(initial, policy)
    saved, one_base = stage.describe_base(base), stage.config.lora.one_base
    shared = (saved, base) if one_base else None
    reward = run.load_reward_model(section.reward_from, adapters=stage.lora, shared=shared).params
    _, value = stage.with_adapters(reward, scalar, 1)
    reward_base, reward_learned = lora.split(reward)
    return Start(learned, reward_learned, value, (base,) if one_base else (base, reward_base), saved)


def attached(frozen: Frozen, bases: tuple[Params, ...]) -> Frozen:
    """Returns reference and reward model as whole weights; no array is copied."""
    if not bases:
        return frozen
    return Frozen(lora.attach(bases[0], frozen.reference), lora.attach(bases[-1], frozen.reward))


def with_whole_average(state: PPOState, bases: tuple[Params, ...]) -> PPOState:
    """Returns the state with the whole weights of the average; no array is copied."""
    if not bases:
        return state
    assert state.policy.ema is not None
    return state.replace(policy=state.policy.replace(ema=lora.attach(bases[0], state.policy.ema)))
