"""Compiles programs for devices that need not be present, to find out whether they fit and what fills the memory."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.models import partitioning
from instructjax.planning import communication
from instructjax.planning.chips import Topology
from instructjax.planning.shapes import Program
from instructjax.training import parallel

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The compiler's messages about a program that needs more memory than is available.
_OUT_OF_MEMORY = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)


@dataclasses.dataclass(frozen=True)
class Residents:
    """The arguments of a program, in bytes per device.

    Attributes:
      weights: of all networks, averages and frozen ones included.
      optimizer: Adam's moments.
      batch: the rows of a step.
    """

    weights: int
    optimizer: int
    batch: int

    @property
    def total(self) -> int:
        """The sum of all arguments."""
        return self.weights + self.optimizer + self.batch


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on a program.

    Attributes:
      fits: whether the program fits the available memory.
      peak: peak memory, in bytes per device. If the program does not fit, the memory that
        the compiler says it needs.
      available: bytes per device that are available to a program.
      sent: bytes that each device sends to others, if no response ends early; NaN if the program does not fit.
      seconds: compilation time.
    """

    fits: bool
    peak: float
    available: float
    sent: float
    seconds: float


def abstract_arguments(program: Program, mesh: Mesh, *, shard_optimizer_state: bool) -> tuple[Any, ...]:
    """Returns the arguments of a program, (state, batch, key, *constants), as shapes with their shardings.

    Args:
      program: the program that takes them.
      mesh: the mesh over which they are sharded.
      shard_optimizer_state: whether Adam's moments are sharded over "data", too.
    """

    def shard(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)

    rows = NamedSharding(mesh, P(partitioning.RULES["batch"]))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return (
        shard(program.state, parallel.shardings(program.state, mesh, shard_optimizer_state=shard_optimizer_state)),
        shard(program.batch, jax.tree.map(lambda _: rows, program.batch)),
        shard(key, NamedSharding(mesh, P())),
        *(shard(tree, parallel.shardings(tree, mesh)) for tree in program.constants),
    )


def resident_bytes(arguments: tuple[Any, ...]) -> Residents:
    """Computes the memory that the arguments of a program fill on each device; see `abstract_arguments`."""
    state, batch, _, *constants = arguments
    leaves = jax.tree_util.tree_leaves_with_path(state)
    optimizer = sum(_bytes(x) for path, x in leaves if _is_optimizer_state(path))
    everything = sum(_bytes(x) for x in jax.tree.leaves((state, constants)))
    return Residents(everything - optimizer, optimizer, sum(_bytes(x) for x in jax.tree.leaves(batch)))


def compile_program(
    program: Program, arguments: tuple[Any, ...], mesh: Mesh, topology: Topology, *, shard_optimizer_state: bool
) -> Compiled:
    """Compiles a program for a mesh of devices that need not be present.

    Args:
      program: the program.
      arguments: see `abstract_arguments`.
      mesh: see `make_mesh`.
      topology: the chips of the mesh.
      shard_optimizer_state: whether Adam's moments are sharded over "data", too.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for a reason other than memory.
    """
    start = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            lowered = lower(program, arguments, shard_optimizer_state=shard_optimizer_state)
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = parse_out_of_memory(str(error))
        if needed is None:
            raise
        return Compiled(False, *needed, math.nan, time.monotonic() - start)
    available = topology.chip.memory
    peak = peak_bytes(compiled.memory_analysis(), topology.chip.platform)
    sent = communication.bytes_sent(compiled.as_text() or "")
    return Compiled(peak <= available, peak, available, sent, time.monotonic() - start)


def lower(program: Program, arguments: tuple[Any, ...], *, shard_optimizer_state: bool) -> jax.stages.Lowered:
    """Lowers a program for the mesh of the context, if there is one; see `compile_program`."""
    mesh, function = jax.sharding.get_mesh(), program.function
    if program.donated and not mesh.empty:
        function = parallel.in_place(function, mesh, shard_optimizer_state=shard_optimizer_state)
    # Arguments that this part of an iteration does not use are in memory during a run, too.
    return jax.jit(function, donate_argnums=(0,) if program.donated else (), keep_unused=True).lower(*arguments)


def peak_bytes(analysis: Any, platform: str) -> float:
    """Returns the peak memory of a compiled program per device, from `jax.stages.Compiled.memory_analysis`."""
    if platform != "cpu":
        return analysis.peak_memory_in_bytes
    # There, the peak does not count temporary buffers.
    allocated = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return allocated + analysis.temp_size_in_bytes


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
    """Reads (needed, available) bytes from the compiler's message that memory is exhausted.

    Returns None for any other message.
    """
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(message):
            needed, unit, available, unit_available = found.groups()
            return float(needed) * _UNITS[unit], float(available) * _UNITS[unit_available]
    return None


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of an array on each device."""
    size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * size


def _is_optimizer_state(path: Any) -> bool:
    return "opt_state" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
