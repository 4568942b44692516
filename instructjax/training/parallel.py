"""One pure step, compiled for the devices at hand: `jit` over a mesh, or `pmap`.

The step does not know devices. Under `jit` it sees global arrays, and XLA splits
the work; under `pmap` each device sees its rows, and the step adds its sums up
over the axis named here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
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
    """Compiles `step(state, batch, key, *constants) -> (state, metrics)` over all devices.

    The state is replicated and donated, every array of the batch is cut along its first
    axis, the key and the constants (frozen weights) are the same everywhere. The result
    takes and returns the same things in both modes: one state, one whole batch, one set
    of metrics.

    Args:
      step: a pure step, built with `axis_name(mode)`.
      mode: "jit" or "pmap".

    Raises:
      ConfigError: an unknown mode.
    """
    if axis_name(mode) is not None:
        return _pmapped(step)
    if jax.device_count() == 1:
        return jax.jit(step, donate_argnums=0)
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated)

    def call(state: Any, batch: Any, key: Any, *constants: Any) -> Any:
        state, key, constants = jax.device_put((state, key, constants), replicated)
        return compiled(state, jax.device_put(batch, rows), key, *constants)

    return call


def _pmapped(step: Callable) -> Callable:
    devices = jax.local_device_count()

    def positional(constants, state, batch, key):
        return step(state, batch, key, *constants)

    # out_axes=None takes one device's copy: the step leaves the same state on each.
    compiled = jax.pmap(positional, axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=None)

    def call(state: Any, batch: Any, key: Any, *constants: Any) -> Any:
        cut = jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
        return compiled(constants, state, cut, key)

    return call
