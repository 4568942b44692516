"""A program compiled for devices that are not there: whether it fits, and what fills their memory."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.models import partitioning
from instructjax.planning import chips
from instructjax.planning.chips import Topology
from instructjax.planning.programs import Program
from instructjax.training import parallel

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the compiler says of a program that needs more memory than there is.
_EXHAUSTED = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)


@dataclasses.dataclass(frozen=True)
class Residents:
    """What a program is given, in bytes on each device.

    Attributes:
      weights: of all networks, averages included.
      optimizer: the moments.
      batch: the rows of a step.
    """

    weights: int
    optimizer: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.batch


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler found.

    Attributes:
      fits: whether the program runs in the memory there is.
      peak: bytes on a device at the worst moment. Of a program that does not fit, what the
        compiler says that it needs.
      available: bytes a program may fill.
      seconds: that the compiler took.
    """

    fits: bool
    peak: float
    available: float
    seconds: float


def mesh(topology: Topology, shape: tuple[int, int, int]) -> Mesh:
    """The mesh of a plan, its axes laid along the torus where that can be.

    Args:
      topology: what to compile for.
      shape: devices along "data", "fsdp" and "tensor".
    """
    found = chips.devices(topology)
    if topology.chip.platform == "tpu":
        devices = mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True)
    else:
        devices = np.array(found).reshape(shape)  # neighbours on "tensor" share a host
    axes = partitioning.MESH_AXES
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


def placed(program: Program, where: Mesh, *, shard_optimizer_state: bool) -> tuple[Any, ...]:
    """The arguments of a program, (state, batch, key, *constants), each with its place on the mesh."""

    def at(tree: Any, places: Any) -> Any:
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    rows = NamedSharding(where, P(partitioning.RULES["batch"]))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return (
        at(program.state, parallel.shardings(program.state, where, shard_optimizer_state=shard_optimizer_state)),
        at(program.batch, jax.tree.map(lambda _: rows, program.batch)),
        at(key, NamedSharding(where, P())),
        *(at(tree, parallel.shardings(tree, where)) for tree in program.constants),
    )


def residents(arguments: tuple[Any, ...]) -> Residents:
    """How much of a device's memory the arguments of a program fill; see `placed`."""
    state, batch, _, *constants = arguments
    optimizer = sum(_bytes(x) for path, x in jax.tree_util.tree_leaves_with_path(state) if _is_slot(path))
    everything = sum(_bytes(x) for x in jax.tree.leaves((state, constants)))
    return Residents(everything - optimizer, optimizer, sum(_bytes(x) for x in jax.tree.leaves(batch)))


def compile_program(
    program: Program, arguments: tuple[Any, ...], where: Mesh, topology: Topology, *, shard_optimizer_state: bool
) -> Compiled:
    """Compiles a program for a mesh of devices that are not there.

    Args:
      program: what to compile.
      arguments: see `placed`.
      where: the mesh.
      topology: what the mesh is of.
      shard_optimizer_state: whether the optimiser's moments are cut over "data" too.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed, but not for want of memory.
    """
    start = time.monotonic()
    donated = (0,) if program.donated else ()
    function = (
        parallel.in_place(program.function, where, shard_optimizer_state=shard_optimizer_state)
        if donated
        else program.function
    )
    try:
        with jax.set_mesh(where):
            # What this part of an iteration does not use is in memory all the same.
            jitted = jax.jit(function, donate_argnums=donated, keep_unused=True)
            analysis = jitted.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = exhausted(str(error))
        if needed is None:
            raise
        return Compiled(False, *needed, time.monotonic() - start)
    available = topology.chip.memory
    peak = analysis.peak_memory_in_bytes
    if topology.chip.platform == "cpu":  # whose peak leaves out what is temporary
        given = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        peak = given + analysis.temp_size_in_bytes
    return Compiled(peak <= available, peak, available, time.monotonic() - start)


def exhausted(message: str) -> tuple[float, float] | None:
    """(needed, available) bytes of the compiler's message that memory does not suffice, or None if it is another."""
    for pattern in _EXHAUSTED:
        if found := pattern.search(message):
            needed, unit, available, unit_available = found.groups()
            return float(needed) * _UNITS[unit], float(available) * _UNITS[unit_available]
    return None


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(x.sharding.shard_shape(x.shape)) * size


def _is_slot(path: Any) -> bool:
    return "opt_state" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
