"""Builds a training step from a loss: the gradient of a global mean, and one update if it is finite.

A loss returns a sum and a weight. Both are summed over microbatches, and over devices if
an axis is named, and divided once at the end. So the result does not depend on how the
batch was split. With ragged masks a mean of means would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from instructjax import losses
from instructjax.models.partitioning import constrain_rows, mesh_of_context
from instructjax.training import metrics as metrics_lib
from instructjax.training import state as train_state
from instructjax.training.metrics import Maximum, Mean, Metrics
from instructjax.training.rows import split_interleaved
from instructjax.training.state import Params, TrainState

Array = jax.Array
Batch = Any
Pair = tuple[Array, Array]  # (sum, weight)
Loss = Callable[[Params, Any, Any], tuple[Pair, Metrics]]  # of weights, a batch and a key (None: no dropout)
IsEmpty = Callable[[Any], Array]  # of a batch; returns a bool scalar


def summed_gradient(
    loss: Loss,
    params: Params,
    batch: Batch,
    key: Array | None,
    *,
    microbatches: int = 1,
    axis_name: str | None = None,
    is_empty: IsEmpty | None = None,
) -> tuple[tuple[Params, Array], Metrics]:
    """Computes the gradient of a loss's sum over the global batch, and the weight to divide it by.

    Both are summed over all microbatches and, with an axis name, over all devices of that
    axis. `losses.mean` turns the pair into the gradient of the global mean.

    On a mesh of data only, several microbatches without a key are summed on each device first, so gradients are reduced
    once, not once per microbatch. With a key they are not, because each device would draw its own noise. Nor are they
    on other meshes: with `shard_map` over "data" only, XLA aborts when it partitions the gathers and conditionals of a
    loss over the other axes (jaxlib 0.10 and 0.11).

    Args:
      loss: `loss(params, batch, key) -> ((sum, weight), metrics)`.
      params: the weights to differentiate.
      batch: a pytree of arrays [B, ...], B divisible by `microbatches`.
      key: random key of the loss, for dropout; None if it draws nothing.
      microbatches: number of parts of the batch that are computed one after the other.
      axis_name: the mapped axis over which devices hold parts of the batch.
      is_empty: whether a microbatch has weight 0 and nothing to measure; then it is skipped. None if none is.

    Returns:
      (gradient, weight), and the metrics with "loss" added, all over the global batch.
    """
    mesh = mesh_of_context()
    if mesh is None or mesh.shape["data"] != mesh.size or microbatches == 1 or key is not None:
        return _summed_gradient(loss, params, batch, key, microbatches, axis_name, is_empty)

    def on_device(params: Params, rows: Batch) -> tuple[tuple[Params, Array], Metrics]:
        return _summed_gradient(loss, params, rows, None, microbatches, "data", is_empty)

    return jax.shard_map(on_device, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)(params, batch)


def _summed_gradient(
    loss: Loss,
    params: Params,
    batch: Batch,
    key: Array | None,
    microbatches: int,
    axis_name: str | None,
    is_empty: IsEmpty | None,
) -> tuple[tuple[Params, Array], Metrics]:
    def total(params: Params, batch: Batch, key: Array | None) -> tuple[Array, tuple[Array, Metrics]]:
        (value, weight), metrics = loss(params, batch, key)
        return value, (weight, {"loss": Mean(value, weight), **metrics})

    differentiate = jax.grad(total, has_aux=True)
    if axis_name is not None and key is not None:
        # Each device sees only its own rows, so devices draw different noise.
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    if microbatches == 1:
        gradient, (weight, metrics) = differentiate(params, batch, key)
    else:
        parts = split_interleaved(batch, microbatches)

        def add(sums: Any, index_and_part: tuple[Array, Batch]) -> tuple[Any, None]:
            index, part = index_and_part

            def added(sums: Any) -> Any:
                noise = None if key is None else jax.random.fold_in(key, index)
                gradient, (weight, metrics) = differentiate(params, constrain_rows(part), noise)
                pair, merged = sums
                return jax.tree.map(jnp.add, pair, (gradient, weight)), metrics_lib.merge(merged, metrics)

            if is_empty is None:
                return added(sums), None
            return jax.lax.cond(is_empty(part), lambda sums: sums, added, sums), None

        first = jax.tree.map(lambda x: x[0], parts)
        gradient, (weight, metrics) = jax.eval_shape(differentiate, params, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, weight))
        start = zeros, metrics_lib.empty(metrics)
        ((gradient, weight), metrics), _ = jax.lax.scan(add, start, (jnp.arange(microbatches), parts))
    if axis_name is not None:
        gradient, weight = jax.lax.psum((gradient, weight), axis_name)
    return (gradient, weight), metrics_lib.reduce(metrics, axis_name)


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    axis_name: str | None = None,
    random: bool = True,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Builds a pure step `step(state, batch, key) -> (state, metrics)` that performs one update.

    The key is the run's root key. The step folds its own number into it, so a resumed run
    repeats the uninterrupted one.

    Args:
      loss: see `summed_gradient`.
      optimizer: turns gradients into updates.
      microbatches: see `summed_gradient`.
      axis_name: see `summed_gradient`.
      random: whether the loss draws random numbers; if not, it gets None instead of a key.
    """

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        noise = jax.random.fold_in(key, state.step) if random else None
        pair, metrics = summed_gradient(
            loss, state.params, batch, noise, microbatches=microbatches, axis_name=axis_name
        )
        return finite_update(state, losses.mean(*pair), metrics_lib.total(metrics, "loss"), metrics, optimizer)

    return step


def finite_update(
    state: TrainState,
    gradient: Params,
    loss: Array,
    metrics: Metrics,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Applies one update, or skips it if the loss or the gradient is not finite.

    Args:
      state: the state before.
      gradient: of the mean loss over the global batch.
      loss: scalar; used only to check that it is finite.
      metrics: of the forward pass.
      optimizer: turns gradients into updates.

    Returns:
      The new state, and the metrics with "gradient_norm", "skipped" (share of updates) and
      "skipped_in_a_row" added. If the update is skipped, all other metrics are empty.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    state = train_state.apply_gradients(state, gradient, optimizer, finite)
    one = jnp.ones(())
    metrics = {**metrics, "gradient_norm": Mean(norm, one)}
    metrics = jax.tree.map(lambda x, nothing: jnp.where(finite, x, nothing), metrics, metrics_lib.empty(metrics))
    return state, {
        **metrics,
        "skipped": Mean(1.0 - finite, one),
        "skipped_in_a_row": Maximum(state.skipped.astype(jnp.float32)),
    }
