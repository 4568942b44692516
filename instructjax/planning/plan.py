"""Plans a program of a recipe on a mesh: whether it fits, its memory, its FLOPs and its least time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from instructjax.models import traced_flops
from instructjax.models.flops import Work
from instructjax.planning import chips, compiling, programs, shapes
from instructjax.planning.chips import Topology
from instructjax.planning.compiling import Compiled, Residents
from instructjax.planning.shapes import Program
from instructjax.training import parallel


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """The plan of one program on one mesh.

    Attributes:
      name: the program.
      topology: the chips, such as "v5p:8x8x8".
      mesh: devices along "data", "fsdp" and "tensor".
      changes: config keys that differ from the recipe.
      obstacle: why the program cannot be sharded over this mesh; "" if it can.
      residents: its arguments, in bytes per device; None if there is an obstacle.
      cache: bytes of keys and values per device.
      compiled: the compiler's report; None if there is an obstacle.
      flops: model FLOPs; see `flops`.
      executed: FLOPs of the matmuls that the program executes, recomputation included.
      seconds: the least seconds of each phase; see `roofline`.
      links: the least seconds of communication, with all links of a device in use all the time; NaN if no rate is
        published, or the program does not fit.
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
    links: float

    @property
    def fits(self) -> bool:
        """Whether the program can be sharded over the mesh and fits the memory."""
        return self.compiled is not None and self.compiled.fits

    @property
    def rest(self) -> float:
        """The peak minus the arguments: activations, gradients, logits, the cache. 0 if there is an obstacle."""
        if self.compiled is None or self.residents is None:
            return 0.0
        return max(0.0, self.compiled.peak - self.residents.total)


def plan_program(
    name: str, config: ml_collections.ConfigDict, topology: Topology, changes: Mapping[str, int] | None = None
) -> ProgramPlan:
    """Compiles one program of a recipe for a topology and reports what it needs.

    Args:
      name: a key of `programs.PROGRAMS`.
      config: a whole recipe.
      topology: the chips to compile for.
      changes: config keys to override, with their values.

    Raises:
      ConfigError: the devices do not form the recipe's mesh, or the compiler is not installed.
    """
    config = override(config, changes or {})
    shape = parallel.mesh_shape(config.parallel, topology.size)
    config = override(config, mesh_keys(shape))
    program = programs.build(name, config)
    found = ProgramPlan(
        name=name,
        topology=topology.name,
        mesh=shape,
        changes=dict(changes or {}),
        obstacle=uneven_rows(program, shape) or uneven_model(config, shape),
        residents=None,
        cache=program.cache / topology.size,
        compiled=None,
        flops=program.work.flops,
        executed=count_executed_flops(program),
        seconds={phase: roofline(work, topology, shape[2]) for phase, work in program.phases.items()},
        links=math.nan,
    )
    if found.obstacle:
        return found
    mesh, sharded = parallel.make_mesh(shape, chips.devices(topology)), config.parallel.shard_optimizer_state
    arguments = compiling.abstract_arguments(program, mesh, shard_optimizer_state=sharded)
    compiled = compiling.compile_program(program, arguments, mesh, topology, shard_optimizer_state=sharded)
    rate, residents = topology.chip.links, compiling.resident_bytes(arguments)
    links = compiled.sent / rate if rate else math.nan
    return dataclasses.replace(found, residents=residents, compiled=compiled, links=links)


def override(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a copy of a recipe with some keys, such as "sft.microbatches", set to other values."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(changes))
    return config


def uneven_rows(program: Program, shape: tuple[int, int, int]) -> str:
    """Returns which rows do not divide over a mesh, or "" if all do."""
    data, fsdp, _ = shape
    for keys, (rows, parts) in program.rows.items():
        if rows % (parts * data * fsdp):
            return f"{keys}: {rows} / {parts} rows do not divide over data x fsdp = {data * fsdp}"
    return ""


def uneven_model(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> str:
    """Returns which side of a network does not divide over a mesh, or "" if all do."""
    for section, model in zip(("model", "reward"), shapes.model_configs(config), strict=True):
        for key, size, axis, parts in parallel.uneven_sides(model, shape):
            return f"{section}.{key} = {size} does not divide over {axis} = {parts}"
    return ""


def count_executed_flops(program: Program) -> float:
    """Traces a program and counts the FLOPs of the matmuls that it executes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(program.function).trace(program.state, program.batch, key, *program.constants)
    return traced_flops.count_matmul_flops(traced.jaxpr, program.trips)


def roofline(work: Work, topology: Topology, tensor: int) -> float:
    """Computes the least seconds of a phase: its FLOPs at the peak rate, or its bytes at full bandwidth.

    Neither communication between devices nor recomputation is counted.

    Args:
      work: the cost of the phase.
      topology: the chips.
      tensor: devices over which the weights of a layer are sharded.

    Returns:
      The larger of the two times; NaN if no peak is published.
    """
    if not topology.chip.peak:
        return math.nan
    read = work.weight_bytes / tensor + work.bytes / topology.size
    return max(work.flops / (topology.size * topology.chip.peak), read / topology.chip.bandwidth)


def mesh_keys(shape: tuple[int, int, int]) -> dict[str, int]:
    """Returns the config keys that set a mesh."""
    return {f"parallel.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), shape, strict=True)}
