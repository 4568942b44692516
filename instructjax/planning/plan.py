"""What one program of a recipe would need on a mesh: whether it fits, its memory, its operations, its time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import ml_collections

from instructjax.planning import compiling, flops, programs
from instructjax.planning.chips import Topology
from instructjax.planning.compiling import Compiled, Residents
from instructjax.planning.flops import Work
from instructjax.planning.programs import Program
from instructjax.training import parallel


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one mesh.

    Attributes:
      name: of the program.
      topology: "v5p:8x8x8".
      mesh: devices along "data", "fsdp" and "tensor".
      changes: config keys that differ from the recipe.
      obstacle: why it cannot be cut over this mesh, or "".
      residents: what it is given, on each device; None with an obstacle.
      cache: bytes of keys and values on each device.
      compiled: what the compiler found; None with an obstacle.
      flops: what the mathematics asks for.
      executed: what the program does, with activations computed again.
      seconds: at the roofline, by phase; see `roofline`.
    """

    name: str
    topology: str
    mesh: tuple[int, int, int]
    changes: dict[str, int]
    obstacle: str
    residents: Residents | None
    cache: float
    compiled: Compiled | None
    flops: float
    executed: float
    seconds: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether it can be cut over the mesh, and runs in the memory there is."""
        return self.compiled is not None and self.compiled.fits

    @property
    def rest(self) -> float:
        """Activations, gradients and everything else at the worst moment: the peak without what is given."""
        return max(0.0, self.compiled.peak - self.residents.total)


def of_program(
    name: str, config: ml_collections.ConfigDict, topology: Topology, changes: dict[str, int] | None = None
) -> Row:
    """Compiles one program of a recipe for a topology and tells what it needs.

    Args:
      name: a key of `programs.PROGRAMS`.
      config: a whole recipe.
      topology: what to compile for.
      changes: keys of the recipe to set otherwise.

    Raises:
      ConfigError: the devices do not make the recipe's mesh, or the compiler is not installed.
    """
    config = changed(config, changes or {})
    shape = parallel.mesh_shape(config.parallel, topology.size)
    config = changed(config, mesh_keys(shape))
    program = programs.build(name, config)
    row = Row(
        name=name,
        topology=topology.name,
        mesh=shape,
        changes=changes or {},
        obstacle=uneven_rows(program, shape) or uneven_model(config, shape),
        residents=None,
        cache=program.cache / topology.size,
        compiled=None,
        flops=program.work.flops,
        executed=executed(program),
        seconds={phase: roofline(work, topology, shape[2]) for phase, work in program.phases.items()},
    )
    if row.obstacle:
        return row
    where, slots = compiling.mesh(topology, shape), config.parallel.shard_optimizer_state
    arguments = compiling.placed(program, where, shard_optimizer_state=slots)
    compiled = compiling.compile_program(program, arguments, where, topology, shard_optimizer_state=slots)
    return dataclasses.replace(row, residents=compiling.residents(arguments), compiled=compiled)


def changed(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a recipe with some keys, such as "sft.microbatches", set otherwise."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def uneven_rows(program: Program, shape: tuple[int, int, int]) -> str:
    """Which rows do not divide over a mesh, or "" if all do."""
    data, fsdp, _ = shape
    for keys, (rows, parts) in program.rows.items():
        if rows % (parts * data * fsdp):
            return f"{keys}: {rows} / {parts} rows do not divide over data x fsdp = {data * fsdp}"
    return ""


def uneven_model(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> str:
    """Which side of a network does not divide over a mesh, or "" if all do."""
    for section, model in zip(("model", "reward"), programs.shapes(config), strict=True):
        for key, size, axis, parts in parallel.uneven_sides(model, shape):
            return f"{section}.{key} = {size} does not divide over {axis} = {parts}"
    return ""


def executed(program: Program) -> float:
    """Operations of the program as it is, counted in its trace."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(program.function).trace(program.state, program.batch, key, *program.constants)
    return flops.matmuls(traced.jaxpr, program.trips)


def roofline(work: Work, topology: Topology, tensor: int) -> float:
    """The least seconds a phase can take: its operations at peak, or its bytes at full bandwidth.

    What devices send each other is not counted, nor is anything computed twice.

    Args:
      work: of the phase.
      topology: its chips.
      tensor: devices that share the weights of a layer.
    """
    if not topology.chip.peak:
        return math.nan
    read = work.weight_bytes / tensor + work.bytes / topology.size
    return max(work.flops / (topology.size * topology.chip.peak), read / topology.chip.bandwidth)


def mesh_keys(shape: tuple[int, int, int]) -> dict[str, int]:
    """The keys of a recipe that give a mesh."""
    return {f"parallel.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), shape, strict=True)}
