"""The state that a PPO iteration changes, the weights it only reads, and networks with their optimizers."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import optax

from instructjax.training.state import Params, TrainState

Array = jax.Array


class PPOState(flax.struct.PyTreeNode):
    """The state of PPO between iterations.

    Attributes:
      step: int32 scalar, the number of iterations done.
      policy: the policy, with the moving average that is evaluated and exported.
      value: the critic, started from the reward model or, if there is none, from the policy; None without a critic.
      kl_coefficient: float32 scalar, β of the next iteration if it is adapted to a target; None if it is fixed.
    """

    step: Array
    policy: TrainState
    value: TrainState | None
    kl_coefficient: Array | None = None


class Frozen(flax.struct.PyTreeNode):
    """The weights that an iteration only reads.

    Attributes:
      reference: of the initial policy, against which the KL penalty is computed.
      reward: of the reward model, including its offset; None if the host gives the scores.
    """

    reference: Params
    reward: Params | None


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and its optimizer.

    Attributes:
      model: a LanguageModel (policy) or a ScalarModel (critic), or an object with their methods.
      optimizer: makes one update per minibatch.
    """

    model: Any
    optimizer: optax.GradientTransformation
