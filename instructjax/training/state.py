"""The state that training changes from step to step: a pytree of arrays and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = Any  # a pytree of arrays
Array = jax.Array


class TrainState(flax.struct.PyTreeNode):
    """The state of one network in training.

    The model and the optimizer are functions that the step closes over.

    Attributes:
      step: int32 scalar, the number of updates, including skipped ones.
      params: the weights.
      opt_state: the optimizer's state.
      skipped: int32 scalar, the number of skipped updates since the last one that was made; see `apply_gradients`.
      ema: None, or an exponential moving average of `params`, of the same shapes.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    skipped: Array
    ema: Params | None = None


def create(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a state before its first update, without an average."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def create_averaged(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns a state before its first update, whose average starts at the weights (appendix C.4)."""
    # A copy, because the two are donated as separate buffers.
    return create(params, optimizer).replace(ema=jax.tree.map(jnp.copy, params))


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, finite: Array
) -> TrainState:
    """Updates the weights. The average is updated separately, by `update_average`.

    Args:
      state: the state before.
      gradients: of the same shapes as its weights.
      optimizer: turns gradients into updates.
      finite: bool scalar. If False, only the two counters change: a single infinite gradient
        would spoil the weights and Adam's moments permanently.
    """

    def made(old: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, opt_state = old
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        new = optax.apply_updates(params, updates), opt_state
        return jax.tree.map(lambda new, old: new.astype(old.dtype), new, old)

    # `where` would read new and old together, so XLA would copy the old state.
    params, opt_state = jax.lax.cond(finite, made, lambda old: old, (state.params, state.opt_state))
    skipped = jnp.where(finite, 0, state.skipped + 1)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped)


def update_average(state: TrainState, decay: float | Array) -> TrainState:
    """Updates the moving average: ema <- decay * ema + (1 - decay) * params."""
    ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, state.params)
    return state.replace(ema=ema)
