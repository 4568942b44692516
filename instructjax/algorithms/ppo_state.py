"""What a PPO iteration changes, what it only reads, and what updates a network."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import optax

from instructjax.training.state import Params, TrainState

Array = jax.Array


class PPOState(flax.struct.PyTreeNode):
    """What an iteration changes.

    Attributes:
      step: int32 scalar, the number of iterations made.
      policy: the policy, with the moving average that is evaluated and exported.
      value: the critic, started from the reward model; None without a critic.
    """

    step: Array
    policy: TrainState
    value: TrainState | None


class Frozen(flax.struct.PyTreeNode):
    """Weights that an iteration only reads.

    Attributes:
      reference: the initial policy's, to which the KL penalty is taken.
      reward: the reward model's, its offset included.
    """

    reference: Params
    reward: Params


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and what updates it.

    Attributes:
      model: a LanguageModel (policy) or a ScalarModel (critic), or what has their methods.
      optimizer: makes one update per minibatch.
    """

    model: Any
    optimizer: optax.GradientTransformation
