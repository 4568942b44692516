"""The training step of a stage that trains one network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from instructjax.training import optimizer, parallel
from instructjax.training.state import Params, TrainState
from instructjax.training.step import Loss, train_step


def training_step(
    config: ml_collections.ConfigDict, section: str, loss: Callable[..., Any], schedule: optax.Schedule
) -> tuple[Callable[..., Any], optax.GradientTransformation]:
    """Returns the pure step of a stage that trains one network, and its optimizer.

    Args:
      config: a whole recipe.
      section: the name of the stage's section.
      loss: `loss(params, batch, key, *frozen)`.
      schedule: learning rate by update.
    """
    adam = optimizer.adam(config.optimizer, schedule, config[section].weight_decay)

    def step(state: TrainState, batch: Any, key: jax.Array, *frozen: Params) -> Any:
        def bound(params: Params, batch: Any, key: jax.Array) -> Any:
            return loss(params, batch, key, *frozen)

        made: Loss = bound
        axis_name = parallel.axis_name(config.parallel.mode)
        splits = {"microbatches": config[section].microbatches, "axis_name": axis_name}
        # Without noise, gradients are reduced over devices once. A section without the key may draw in its own loss.
        draws = "dropout" not in config[section] or config[section].dropout > 0
        return train_step(made, adam, random=draws, **splits)(state, batch, key)

    return step, adam
