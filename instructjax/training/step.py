"""From a loss to a training step: gradients of global means, and one update, if they are finite.

A loss returns sums and weights. They are added up over microbatches, and over
devices where an axis is named, and divided once, at the end. So the answer does
not depend on how the batch was cut, also with ragged masks, where the mean of
means would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from instructjax import losses
from instructjax.models.partitioning import constrain_rows
from instructjax.training import state as train_state
from instructjax.training.state import Params, TrainState

Array = jax.Array
Batch = Any
Pair = tuple[Array, Array]  # (sum, weight)


@flax.struct.dataclass
class Maximum:
    """A metric whose parts are reduced by the maximum, where pairs are added up."""

    value: Array


Metrics = dict[str, Pair | Maximum]
Loss = Callable[[Params, Batch, Array], tuple[Pair, Metrics]]


def summed_gradient(
    loss: Loss, params: Params, batch: Batch, key: Array, *, microbatches: int = 1, axis_name: str | None = None
) -> tuple[tuple[Params, Array], Metrics]:
    """The gradient of a loss's sum over the global batch, and the weight to divide it by.

    Sum and weight run over all microbatches and, with an axis name, over all devices
    of that axis; `losses.mean` turns the pair into the gradient of the global mean.

    Args:
      loss: `loss(params, batch, key) -> ((sum, weight), metrics)`.
      params: the weights to differentiate.
      batch: a pytree of arrays [B, ...], B divisible by `microbatches`.
      key: randomness of the loss (dropout).
      microbatches: parts that the batch is computed in, one after the other.
      axis_name: the mapped axis over which devices hold parts of the batch.

    Returns:
      (gradient, weight), and `metrics` with the entry "loss" added, both over the
      global batch.
    """

    def total(params, batch, key):
        (value, weight), metrics = loss(params, batch, key)
        return value, (weight, {"loss": (value, weight), **metrics})

    differentiate = jax.grad(total, has_aux=True)
    if axis_name is not None:
        # Devices draw different noise, and each sees its own rows only.
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    if microbatches == 1:
        gradient, (weight, metrics) = differentiate(params, batch, key)
    else:
        parts = split_interleaved(batch, microbatches)

        def add(total, index_and_part):
            index, part = index_and_part
            new = differentiate(params, constrain_rows(part), jax.random.fold_in(key, index))
            return _add(total, new), None

        shapes = jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], parts), key)
        (gradient, (weight, metrics)), _ = jax.lax.scan(add, _nothing(shapes), (jnp.arange(microbatches), parts))
    gradient, weight, metrics = over_devices((gradient, weight, metrics), axis_name)
    return (gradient, weight), metrics


def train_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, microbatches: int = 1, axis_name: str | None = None
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """A pure step `step(state, batch, key) -> (state, metrics)` that makes one update.

    The key is the run's root key: the step folds its own number in, so a resumed run
    repeats the uninterrupted one.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        pair, metrics = summed_gradient(loss, state.params, batch, key, microbatches=microbatches, axis_name=axis_name)
        return finite_update(state, losses.mean(*pair), metrics["loss"][0], metrics, optimizer)

    return step


def finite_update(
    state: TrainState,
    gradient: Params,
    loss: Array,
    metrics: Metrics,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update, or none where the loss or the gradient is not finite.

    Args:
      state: the state before.
      gradient: of the mean loss over the global batch.
      loss: scalar; only whether it is finite is asked.
      metrics: of the forward pass.
      optimizer: makes the update.

    Returns:
      The new state, and the metrics with "gradient_norm", "skipped" (share of updates) and
      "skipped_in_a_row" added. Of an update that was skipped the other metrics count nothing.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    state = train_state.apply_gradients(state, gradient, optimizer, finite)
    one = jnp.ones(())
    metrics = {**metrics, "gradient_norm": (norm, one)}
    metrics = jax.tree.map(lambda x, nothing: jnp.where(finite, x, nothing), metrics, _nothing(metrics))
    return state, {
        **metrics,
        "skipped": (1.0 - finite, one),
        "skipped_in_a_row": Maximum(state.skipped.astype(jnp.float32)),
    }


def over_devices(tree: Any, axis_name: str | None) -> Any:
    """Reduces what each device holds to one global value: sums, and maxima of `Maximum`.

    Args:
      tree: arrays and `Maximum`s of one device.
      axis_name: the mapped axis; None, where arrays are global, returns the tree as it is.
    """
    if axis_name is None:
        return tree

    def leaf(x):
        return Maximum(jax.lax.pmax(x.value, axis_name)) if _is_maximum(x) else jax.lax.psum(x, axis_name)

    return jax.tree.map(leaf, tree, is_leaf=_is_maximum)


def gather_rows(tree: Any, axis_name: str | None) -> Any:
    """The rows [B, ...] of all devices, in order, from each device's own; see `over_devices`."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def own_rows(rows: Array, axis_name: str | None) -> Array:
    """This device's share [N / devices] of the row numbers [N] of a global minibatch."""
    if axis_name is None:
        return rows
    size = rows.shape[0] // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(axis_name) * size, size)


def split_interleaved(rows: Any, parts: int) -> Any:
    """Splits rows [B, ...] into n parts [n, B / n, ...]: row i goes to part i mod n."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), rows)


def merge_interleaved(parts: Any) -> Any:
    """Undoes `split_interleaved`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def _nothing(tree: Any) -> Any:
    """What changes nothing when it is added: 0, and the least number for a `Maximum`."""

    def leaf(shape):
        if _is_maximum(shape):
            return Maximum(jnp.full(shape.value.shape, -jnp.inf, shape.value.dtype))
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.map(leaf, tree, is_leaf=_is_maximum)


def _add(a: Any, b: Any) -> Any:
    def leaf(x, y):
        return Maximum(jnp.maximum(x.value, y.value)) if _is_maximum(x) else x + y

    return jax.tree.map(leaf, a, b, is_leaf=_is_maximum)


def _is_maximum(x: Any) -> bool:
    return isinstance(x, Maximum)
