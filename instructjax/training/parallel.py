"""Compiles a pure step for the available devices: `jit` over a mesh, or `pmap`.

The step does not depend on devices. Under `jit` it sees global arrays, and XLA splits the work
according to models/partitioning.py. Under `pmap` each device sees its own rows, and the step
reduces its sums over the axis named here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.batch import EVERY_ROW, Share
from instructjax.errors import ConfigError
from instructjax.models import partitioning
from instructjax.models.config import TransformerConfig

AXIS = "data"
MODES = ("jit", "pmap")


def axis_name(mode: str) -> str | None:
    """Returns the axis over which a step must reduce in this mode: None under jit, where arrays are global."""
    if mode not in MODES:
        raise ConfigError(f"parallel.mode: expected one of {', '.join(MODES)}, found {mode!r}")
    return AXIS if mode == "pmap" else None


def mesh_shape(config: ml_collections.ConfigDict, devices: int) -> tuple[int, int, int]:
    """Returns the number of devices along "data", "fsdp" and "tensor".

    Args:
      config: the `parallel` section of a recipe.
      devices: number of devices.

    Raises:
      ConfigError: the devices do not form such a mesh.
    """
    data, fsdp, tensor = config.data, config.fsdp, config.tensor
    if tensor < 1:
        raise ConfigError(f"parallel.tensor: expected at least 1 device, found {tensor}")
    for key in ("data", "fsdp"):
        if config[key] < 1 and config[key] != -1:
            raise ConfigError(
                f"parallel.{key}: expected at least 1 device, or -1 for all that are left, found {config[key]}"
            )
    if fsdp == -1 and axis_name(config.mode) is not None:
        fsdp = 1  # under pmap each device has all weights
    if fsdp == -1:
        data = max(data, 1)  # if both are to take what is left, "fsdp" does: it also splits the weights
        fsdp = devices // (data * tensor)
    elif data == -1:
        data = devices // (fsdp * tensor)
    if axis_name(config.mode) is not None and (data, fsdp, tensor) != (devices, 1, 1):
        raise ConfigError(
            f"parallel.mode: expected jit for a mesh of data={config.data}, fsdp={config.fsdp}, tensor={tensor}, found "
            f"pmap, which has data only: {devices} devices, each with all weights"
        )
    if axis_name(config.mode) is not None and jax.process_count() > 1:
        # Under pmap each process has only its own results, so they could not be saved in one checkpoint.
        raise ConfigError(
            f"parallel.mode: expected jit in a run of several processes, found pmap in {jax.process_count()}"
        )
    if data * fsdp * tensor != devices:
        raise ConfigError(
            f"parallel: expected data x fsdp x tensor = {devices} devices, found {data} x {fsdp} x {tensor}"
        )
    return data, fsdp, tensor


def make_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> Mesh:
    """Makes a mesh with the axes "data", "fsdp" and "tensor".

    On a TPU slice the axes follow the torus, and several of them may share one of its dimensions. On several slices,
    "data" spans them, because it communicates least. Devices of other kinds keep their order.

    Args:
      shape: number of devices along each axis.
      devices: as many devices as that.

    Raises:
      ConfigError: "data" does not divide over the slices.
    """
    # A description of an absent slice has no `slice_index`.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if shape[0] % slices:
        raise ConfigError(
            f"parallel.data: expected a multiple of the {slices} TPU slices, such as {slices}, found {shape[0]}"
        )
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        inside = (shape[0] // slices, *shape[1:])
        arranged = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    axes = partitioning.MESH_AXES
    return Mesh(arranged, axes, axis_types=(AxisType.Auto,) * len(axes))


@contextlib.contextmanager
def on_mesh(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Runs everything that is compiled in this context on a mesh of all devices.

    Does nothing for a single device, which needs no mesh, and for `pmap`, which makes its own.

    Args:
      config: the `parallel` section of a recipe.

    Raises:
      ConfigError: see `mesh_shape` and `make_mesh`.
    """
    shape = mesh_shape(config, jax.device_count())
    if jax.device_count() == 1 or axis_name(config.mode) is not None:
        yield
        return
    with jax.set_mesh(make_mesh(shape, jax.devices())):
        yield


def check_batch_size(size: int, key: str, config: ml_collections.ConfigDict, parts: int = 1) -> None:
    """Raises an error if a batch does not divide over devices and `parts` (microbatches, minibatches).

    Args:
      size: rows of the global batch.
      key: the config key to name in the error.
      config: the `parallel` section of a recipe.
      parts: number of parts into which each device's rows are split.

    Raises:
      ConfigError: the size does not divide; the message names the nearest sizes that do.
    """
    data, fsdp, _ = mesh_shape(config, jax.device_count())
    unit = data * fsdp * parts
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        fits = f"{below} or {above}" if below else f"{above}"
        shared = f"{data * fsdp} devices x {parts} parts"
        raise ConfigError(f"{key}: expected a multiple of {unit} ({shared}), such as {fits}, found {size}")


def share_of_rows() -> Share:
    """Returns the rows of a global batch that this process reads: those that its devices hold.

    Without a mesh these are all rows. Processes whose devices hold the same rows (if "tensor" spans several processes)
    read the same ones.
    """
    mesh, process = jax.sharding.get_mesh(), jax.process_index()
    if mesh.empty:
        return EVERY_ROW
    parts = mesh.devices.reshape(-1, mesh.shape["tensor"])
    held = [i for i, part in enumerate(parts) if any(device.process_index == process for device in part)]
    return Share(tuple(held), len(parts))


def rows_multiple(config: ml_collections.ConfigDict, microbatches: int) -> int:
    """Returns the number of rows that must divide a global batch, so that it splits over mesh and microbatches."""
    data, fsdp, _ = mesh_shape(config, jax.device_count())
    return data * fsdp * microbatches


def check_model(shape: TransformerConfig, section: str, config: ml_collections.ConfigDict) -> None:
    """Raises an error if a model's matrices do not divide over the mesh.

    Args:
      shape: the model's config.
      section: the section of the recipe that holds it, to name in the error.
      config: the `parallel` section of a recipe.

    Raises:
      ConfigError: a matrix does not divide; the message names both keys.
    """
    for key, size, axis, parts in uneven_sides(shape, mesh_shape(config, jax.device_count())):
        fitting = ", ".join(str(n) for n in range(1, min(size, 4 * parts) + 1) if size % n == 0)
        raise ConfigError(
            f"parallel.{axis}: expected a divisor of {section}.{key} ({size}), such as {fitting}, found {parts}"
        )


def uneven_sides(shape: TransformerConfig, mesh: tuple[int, int, int]) -> list[tuple[str, int, str, int]]:
    """Lists the dimensions of a model that do not divide over this mesh, as (field, size, mesh axis, devices)."""
    _, fsdp, tensor = mesh
    sides = (
        ("num_heads", shape.num_heads, "tensor", tensor),
        ("num_kv_heads", shape.kv_heads, "tensor", 1 if shape.num_kv_heads is None else tensor),
        ("d_ff", shape.d_ff, "tensor", tensor),
        ("d_model", shape.d_model, "fsdp", fsdp),
    )
    return [side for side in sides if side[1] % side[3]]


def shardings(tree: Any, mesh: Mesh, *, shard_optimizer_state: bool = False) -> Any:
    """Returns the sharding of each weight, moment and counter of a tree; see `partitioning.tree_specs`."""
    specs = partitioning.tree_specs(tree, mesh, shard_optimizer_state=shard_optimizer_state)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def abstract(tree: Any) -> Any:
    """Returns the shapes of a tree of weights, with their shardings on the mesh of the context, if there is one."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return shapes
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings(shapes, mesh)
    )


def build(function: Callable[..., Any], *arguments: Any, shard_optimizer_state: bool = False) -> Any:
    """Calls a function that creates weights or a training state, so that no device ever holds all of it.

    Args:
      function: pure; its result is sharded over the mesh of the context, if there is one.
      *arguments: pytrees of arrays.
      shard_optimizer_state: see `compile_step`.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.jit(function)(*arguments)
    where = shardings(jax.eval_shape(function, *arguments), mesh, shard_optimizer_state=shard_optimizer_state)
    return jax.jit(function, out_shardings=where)(*arguments)


def compile_step(step: Callable, config: ml_collections.ConfigDict) -> Callable:
    """Compiles `step(state, batch, key, *constants) -> (state, metrics)` for all devices.

    Each process passes its own rows of the batch; see `share_of_rows`. The state is donated. On the mesh of
    the context (see `on_mesh`), states and constants keep the shardings of `build` and `abstract`, every
    array of the batch is sharded along its first axis, and key and metrics are replicated. Under `pmap` each
    device holds the whole state. The compiled step has the same arguments and results in each mode: one
    state, one batch, one set of metrics.

    Args:
      step: a pure step, built with `axis_name(config.mode)`.
      config: the `parallel` section of a recipe.

    Raises:
      ConfigError: the mode is unknown.
    """
    if axis_name(config.mode) is not None:
        return _pmapped(step)
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.jit(step, donate_argnums=0)
    place = _placement(mesh)
    compiled = jax.jit(in_place(step, mesh, shard_optimizer_state=config.shard_optimizer_state), donate_argnums=0)

    def call(state: Any, batch: Any, *given: Any) -> Any:
        return compiled(state, place(batch), *given)

    return call


def compile_for_host(function: Callable, config: ml_collections.ConfigDict) -> Callable:
    """Compiles `function(state, batch, key) -> (rows, metrics)` for all devices; the host reads the result.

    Arguments are as in `compile_step`, but nothing is donated. The rows [B, ...], of the global batch, are NumPy arrays
    in every process.

    Args:
      function: pure, built with `axis_name(config.mode)`.
      config: the `parallel` section of a recipe.
    """
    if axis_name(config.mode) is not None:
        return _pmapped_for_host(function)
    mesh = jax.sharding.get_mesh()
    place = (lambda batch: batch) if mesh.empty else _placement(mesh)
    compiled = jax.jit(lambda *given: partitioning.replicate(function(*given)))

    def call(state: Any, batch: Any, key: Any) -> Any:
        rows, metrics = compiled(state, place(batch), key)
        return jax.device_get(rows), metrics

    return call


def _placement(mesh: Mesh) -> Callable[[Any], Any]:
    """Returns a function that shards the rows of a batch over a mesh; each process gives those of `share_of_rows`."""
    share = share_of_rows()
    rows = NamedSharding(mesh, P(partitioning.RULES["batch"]))

    def place(x: Any) -> jax.Array:
        shape = (x.shape[0] * share.count // len(share.parts), *x.shape[1:])
        return jax.make_array_from_process_local_data(rows, x, shape)

    return lambda batch: jax.tree.map(place, batch)


def in_place(step: Callable, mesh: Mesh, *, shard_optimizer_state: bool = False) -> Callable:
    """Wraps a step so that its new state keeps the shardings of `build` and its metrics are replicated."""

    def kept(state: Any, *given: Any) -> Any:
        state, metrics = step(state, *given)
        where = shardings(state, mesh, shard_optimizer_state=shard_optimizer_state)
        metrics = jax.lax.with_sharding_constraint(metrics, NamedSharding(mesh, P()))
        return jax.lax.with_sharding_constraint(state, where), metrics

    return kept


def _pmapped_for_host(function: Callable) -> Callable:
    devices = jax.device_count()
    compiled = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0, None), out_axes=(0, None))

    def call(state: Any, batch: Any, key: Any) -> Any:
        cut = jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
        rows, metrics = compiled(state, cut, key)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(rows)), metrics

    return call


def _pmapped(step: Callable) -> Callable:
    devices = jax.device_count()
    everywhere = NamedSharding(Mesh(jax.devices(), (AXIS,)), P())

    def positional(constants: Any, state: Any, batch: Any, key: Any) -> Any:
        return step(state, batch, key, *constants)

    # out_axes=None takes one device's copy: the state is the same on each device after a step.
    compiled = jax.pmap(positional, axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=None, donate_argnums=1)

    given: tuple[Any, ...] | None = None
    placed: Any = None

    def call(state: Any, batch: Any, key: Any, *constants: Any) -> Any:
        nonlocal given, placed
        if given is None or any(one is not other for one, other in zip(given, constants, strict=True)):
            given, placed = constants, jax.device_put(constants, everywhere)  # once, not in every step
        state = jax.device_put(state, everywhere)  # a no-op from the second step on; then the state is donated
        cut = jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
        return compiled(placed, state, cut, key)

    return call
