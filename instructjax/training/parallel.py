"""One pure step, compiled for the devices at hand: `jit` over a mesh, or `pmap`.

The step does not know devices. Under `jit` it sees global arrays, and XLA splits
the work; under `pmap` each device sees its rows, and the step adds its sums up
over the axis named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.errors import ConfigError

AXIS = "data"
MODES = ("jit", "pmap")


def axis_name(mode: str) -> str | None:
    """The axis a step must reduce over in this mode: None under jit, where arrays are global."""
    if mode not in MODES:
        raise ConfigError(f"parallel.mode: expected one of {', '.join(MODES)}, found {mode!r}")
    return AXIS if mode == "pmap" else None


def check_batch_size(size: int, key: str, parts: int = 1) -> None:
    """Refuses a batch that does not divide over devices and `parts` (microbatches, minibatches).

    Args:
      size: rows of the global batch.
      key: the config key to name in the error.
      parts: how often each device's rows are divided further.

    Raises:
      ConfigError: with the nearest sizes that fit.
    """
    unit = jax.device_count() * parts
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        fits = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"{key}: expected a multiple of {unit} ({jax.device_count()} devices x {parts} parts), "
            f"such as {fits}, found {size}"
        )


def compile_step(step: Callable, mode: str) -> Callable:
    """Compiles `step(state, *batches, key) -> (state, metrics)` over all local devices.

    The state is replicated and donated, batches are cut along their first axis, and
    the key is the same everywhere. The result takes and returns host-side views in both
    modes: one state, whole batches, one set of metrics.

    Args:
      step: a pure step, built with `axis_name(mode)`.
      mode: "jit" or "pmap".
    """
    if mode == "pmap":
        return _pmapped(step)
    axis_name(mode)
    if jax.device_count() == 1:
        return jax.jit(step, donate_argnums=0)
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated)

    def call(state: Any, *arguments: Any) -> Any:
        *batches, key = arguments
        state, key = jax.device_put((state, key), replicated)
        return compiled(state, *jax.device_put(batches, rows), key)

    return call


def _pmapped(step: Callable) -> Callable:
    devices = jax.local_device_count()
    compiled = {}

    def call(state: Any, *arguments: Any) -> Any:
        *batches, key = arguments
        if len(batches) not in compiled:
            in_axes = (None, *[0] * len(batches), None)
            compiled[len(batches)] = jax.pmap(step, axis_name=AXIS, in_axes=in_axes, out_axes=None)
        cut = jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batches)
        return compiled[len(batches)](state, *cut, key)

    return call


def to_host(tree: Any) -> Any:
    """Fetches a pytree of device arrays as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
