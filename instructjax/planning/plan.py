"""What a recipe would need: each program's fit, memory and time, the compute of its stages, and what to change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

from instructjax.planning import chips, compiling, flops, programs
from instructjax.planning.chips import Topology
from instructjax.planning.compiling import Compiled, Residents
from instructjax.planning.flops import FLOPS_OF_A_DAY, Work
from instructjax.planning.programs import Program
from instructjax.training import parallel

# The keys that divide a program's rows into more parts, by program; the first is tried first.
_PARTS = {
    "pretrain": ("pretrain.microbatches",),
    "sft": ("sft.microbatches",),
    "reward": ("reward.microbatches",),
    "ppo_init": ("ppo_init.microbatches",),
    "ppo rollout": ("ppo.rollout_parts",),
    "ppo_ptx rollout": ("ppo.rollout_parts",),
    "ppo_ptx update": ("ppo.ptx_microbatches",),
    "ppo iteration": ("ppo.rollout_parts",),
    "ppo_ptx iteration": ("ppo.rollout_parts", "ppo.ptx_microbatches"),
}


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
        obstacle=obstacle(program, config, shape),
        residents=None,
        cache=program.cache / topology.size,
        compiled=None,
        flops=program.work.flops,
        executed=executed(program),
        seconds={phase: roofline(work, topology, shape[2]) for phase, work in program.phases.items()},
    )
    if row.obstacle:
        return row
    where, slots = compiling.mesh(topology, shape), config.parallel.shard_slots
    arguments = compiling.placed(program, where, shard_slots=slots)
    compiled = compiling.compile_program(program, arguments, where, topology, shard_slots=slots)
    return dataclasses.replace(row, residents=compiling.residents(arguments), compiled=compiled)


def changed(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """A copy of a recipe with some keys, such as "sft.microbatches", set otherwise."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def obstacle(program: Program, config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> str:
    """What does not divide over a mesh, or "" if all does."""
    data, fsdp, tensor = shape
    for keys, rows in program.rows.items():
        if rows % (data * fsdp):
            return f"{keys} = {rows} rows do not divide over data x fsdp = {data * fsdp}"
    for model in programs.shapes(config):
        for key, size, axis, parts in (
            ("num_heads", model.num_heads, "tensor", tensor),
            ("d_ff", model.d_ff, "tensor", tensor),
            ("d_model", model.d_model, "fsdp", fsdp),
        ):
            if size % parts:
                return f"model.{key} = {size} does not divide over {axis} = {parts}"
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


def suggest(row: Row, config: ml_collections.ConfigDict, topology: Topology, trials: int) -> Row | None:
    """The nearest setting with which a program fits, or None if none is found.

    Tries, in this order, more and smaller parts on the same mesh, other meshes of the same
    chips, and larger slices; what could not fit by its arguments and cache alone is not compiled.

    Args:
      row: of the program that does not fit.
      config: a whole recipe.
      topology: the recipe's.
      trials: programs to compile at most.
    """
    for place, changes in candidates(row, config, topology):
        if trials == 0:
            return None
        if _cannot_fit(row.name, changed(config, changes), place):
            continue
        trials -= 1
        found = of_program(row.name, config, place, changes)
        if found.fits:
            return found
    return None


def candidates(
    row: Row, config: ml_collections.ConfigDict, topology: Topology
) -> Iterator[tuple[Topology, dict[str, int]]]:
    """Settings near a recipe's, nearest first: topologies, with keys to set otherwise."""
    flat = config.to_dict()
    settings = [{}]
    for times in (2, 4, 8, 16):
        settings.append({key: times * _value(flat, key) for key in _PARTS.get(row.name, ())})
    settings = [parts for i, parts in enumerate(settings) if parts not in settings[:i]]
    for parts in settings[1:]:
        yield topology, parts
    place: Topology | None = topology
    while place is not None:
        meshes = _meshes(place.size, row.mesh[2])
        for parts in settings:
            for mesh in meshes:
                if (place, mesh) != (topology, row.mesh):
                    yield place, {**mesh_keys(mesh), **parts}
        place = _larger(place)


def mesh_keys(shape: tuple[int, int, int]) -> dict[str, int]:
    """The keys of a recipe that give a mesh."""
    return {f"parallel.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), shape, strict=True)}


def _meshes(size: int, tensor: int) -> list[tuple[int, int, int]]:
    """Meshes of so many devices without "data", those nearest to a tensor split first."""
    splits = [split for split in range(1, size + 1) if size % split == 0]
    splits.sort(key=lambda split: abs(math.log2(split / tensor)))
    return [(1, size // split, split) for split in splits]


def _larger(topology: Topology) -> Topology | None:
    """The slice with twice the chips, its shortest side doubled; None if there is none."""
    if 2 * topology.size > topology.chip.largest:
        return None
    *shape, kind = *topology.shape, topology.name.partition(":")[0]
    if topology.chip.platform == "cuda":
        shape = [2, *shape] if len(shape) == 1 else [2 * shape[0], shape[1]]
    else:
        shape[shape.index(min(shape))] *= 2
        shape.sort()
    return chips.parse(f"{kind}:{'x'.join(map(str, shape))}")


def _cannot_fit(name: str, config: ml_collections.ConfigDict, topology: Topology) -> bool:
    """Whether what a program is given, its cache, and one gradient of its weights are too much already."""
    shape = parallel.mesh_shape(config.parallel, topology.size)
    program = programs.build(name, changed(config, mesh_keys(shape)))
    if obstacle(program, config, shape):
        return True
    arguments = compiling.placed(program, compiling.mesh(topology, shape), shard_slots=config.parallel.shard_slots)
    return compiling.residents(arguments).total + program.cache / topology.size > topology.chip.memory


def _value(flat: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        flat = flat[part]
    return flat


@dataclasses.dataclass(frozen=True)
class Stage:
    """The compute of a stage, which no hardware changes.

    Attributes:
      name: of the stage.
      steps: how often its program runs.
      days: petaflop/s-days that the mathematics asks for.
      paper: those of the paper, or None where it gives none.
    """

    name: str
    steps: int
    days: float
    paper: float | None


PAPER = {("175b", "pretrain"): 3640.0, ("175b", "sft"): 4.9, ("175b", "ppo_ptx"): 60.0}  # section 5


def stages(config: ml_collections.ConfigDict, demonstrations: int, rankings: int, size: str) -> list[Stage]:
    """The compute of all stages of a recipe.

    Args:
      config: a whole recipe.
      demonstrations: examples of SFT; Table 6 has 12,725.
      rankings: prompts with ranked answers; Table 6 has 33,207.
      size: the paper's name of the model, whose figures stand beside.
    """
    steps = {
        "pretrain": config.pretrain.steps,
        "sft": math.ceil(demonstrations * config.sft.epochs / config.sft.batch_size),
        "reward": math.ceil(rankings * config.reward.epochs / config.reward.batch_size),
        "ppo_init": max(
            1,
            round(
                config.ppo_init.epochs
                * demonstrations
                / (config.ppo_init.batch_size * (1 - config.ppo_init.text_share))
            ),
        ),
        "ppo": config.ppo.iterations,
        "ppo_ptx": config.ppo.iterations,
    }
    found = []
    for stage, times in steps.items():
        name = f"{stage} iteration" if stage.startswith("ppo") and stage != "ppo_init" else stage
        total = times * programs.build(name, config).work.flops
        found.append(Stage(stage, times, total / FLOPS_OF_A_DAY, PAPER.get((size, stage))))
    return found
