"""The training step of a stage that trains one network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from instructjax.models import lora
from instructjax.models.config import TransformerConfig
from instructjax.training import optimizer, parallel
from instructjax.training.state import Params, TrainState
from instructjax.training.step import Loss, train_step


def training_step(
    config: ml_collections.ConfigDict,
    section: str,
    loss: Callable[..., Any],
    schedule: optax.Schedule,
    *,
    has_base: bool = False,
) -> tuple[Callable[..., Any], optax.GradientTransformation]:
    """Returns the pure step of a stage that trains one network, and its optimizer.

    Args:
      config: a whole recipe.
      section: the name of the stage's section.
      loss: `loss(params, batch, key, *frozen)`.
      schedule: learning rate by update.
      has_base: whether only adapters and heads learn; see models/lora.py. The first frozen weights are then the base.
    """
    if has_base:
        loss = _of_learned(loss)
    adam = optimizer.adam(config.optimizer, schedule, config[section].weight_decay)

    def step(state: TrainState, batch: Any, key: jax.Array, *frozen: Params) -> Any:
        def bound(params: Params, batch: Any, key: jax.Array) -> Any:
            return loss(params, batch, key, *frozen)

        made: Loss = bound
        axis_name = parallel.axis_name(config.parallel.mode)
        splits = {"microbatches": config[section].microbatches, "axis_name": axis_name}
        # Without noise, gradients are reduced over devices once. A section without the key may draw in its own loss.
        rates = config[section].get("dropout"), config.lora.dropout if has_base else 0
        draws = rates[0] is None or max(rates) > 0
        return train_step(made, adam, random=draws, **splits)(state, batch, key)

    return step, adam


def with_dropout(network: TransformerConfig, config: ml_collections.ConfigDict, section: str) -> TransformerConfig:
    """Returns a network with the dropout of a stage.

    Args:
      network: without dropout.
      config: a whole recipe.
      section: the name of the stage's section.
    """
    lora_dropout = config.lora.dropout if config.lora.rank else 0.0
    return dataclasses.replace(network, dropout=config[section].dropout, lora_dropout=lora_dropout)


def _of_learned(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a loss as a function of what learns, `of_learned(learned, batch, key, base, *frozen)`."""

    def of_learned(learned: Params, batch: Any, key: jax.Array, base: Params, *frozen: Params) -> Any:
        return loss(lora.attach(base, learned), batch, key, *frozen)

    return of_learned
