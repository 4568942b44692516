"""What to change for a program to fit: smaller parts, another mesh, more chips."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator

import ml_collections

from instructjax.planning import compiling, plan, programs
from instructjax.planning.chips import Topology
from instructjax.planning.plan import Row
from instructjax.training import parallel

# The keys that divide a program's rows into more parts, by program; the first is tried first.
_PARTS = {
    "pretrain": ("pretrain.microbatches",),
    "sft": ("sft.microbatches",),
    "reward": ("reward.microbatches",),
    "ppo_init": ("ppo_init.microbatches",),
    "ppo scoring": ("ppo.microbatches",),
    "ppo_ptx scoring": ("ppo.microbatches",),
    "ppo update": ("ppo.microbatches",),
    "ppo rollout": ("ppo.rollout_parts",),
    "ppo_ptx rollout": ("ppo.rollout_parts",),
    "ppo_ptx update": ("ppo.ptx_microbatches", "ppo.microbatches"),
    "ppo iteration": ("ppo.rollout_parts", "ppo.microbatches"),
    "ppo_ptx iteration": ("ppo.rollout_parts", "ppo.microbatches", "ppo.ptx_microbatches"),
}


def suggest(row: Row, config: ml_collections.ConfigDict, topology: Topology, trials: int) -> Row | None:
    """The nearest setting with which a program fits, or None if none is found.

    Tries, in this order, more and smaller parts on the same mesh, other meshes of the same
    chips, and other slices; what could not fit by its arguments and cache alone is not compiled.

    Args:
      row: of the program that does not fit.
      config: a whole recipe.
      topology: the recipe's.
      trials: programs to compile at most.
    """
    for place, changes in candidates(row, config, topology):
        if trials == 0:
            return None
        if _cannot_fit(row.name, plan.changed(config, changes), place):
            continue
        trials -= 1
        found = plan.of_program(row.name, config, place, changes)
        if found.fits:
            return found
    return None


def candidates(
    row: Row, config: ml_collections.ConfigDict, topology: Topology
) -> Iterator[tuple[Topology, dict[str, int]]]:
    """Settings near a recipe's, nearest first: topologies, with keys to set otherwise."""
    times = (1, 2, 4, 8, 16)
    keys = _PARTS[row.name]
    # One key after the other, then all of them: what one divides, another may not.
    settings = [{}] + [
        {key: n * operator.attrgetter(key)(config) for key in chosen}
        for chosen in dict.fromkeys([*((key,) for key in keys), keys])
        for n in times[1:]
    ]
    for parts in settings[1:]:
        yield topology, parts
    # Where rows do not divide, fewer chips may be what is needed.
    places = [topology, *(_halved(topology) if row.obstacle else ()), *_doubled(topology)]
    for place in places:
        for parts in settings:
            for mesh in _meshes(place.size, row.mesh[2]):
                if (place, mesh) != (topology, row.mesh):
                    yield place, {**plan.mesh_keys(mesh), **(parts if parts != settings[0] else {})}


def _meshes(size: int, tensor: int) -> list[tuple[int, int, int]]:
    """Meshes of so many devices without "data", those nearest to a tensor split first."""
    splits = [split for split in range(1, size + 1) if size % split == 0]
    splits.sort(key=lambda split: abs(math.log2(split / tensor)))
    return [(1, size // split, split) for split in splits]


def _doubled(topology: Topology) -> Iterator[Topology]:
    """Slices with two, four, ... times the chips: the shortest side doubled, or the hosts."""
    while 2 * topology.size <= topology.chip.largest:
        shape = list(topology.shape)
        if topology.chip.platform == "cuda":
            shape = [2, *shape] if len(shape) == 1 else [2 * shape[0], shape[1]]
        else:
            shape[shape.index(min(shape))] *= 2
        topology = _of_shape(topology, shape)
        yield topology


def _halved(topology: Topology) -> Iterator[Topology]:
    """Slices with a half, a quarter, ... of the chips: the longest side halved, or the hosts."""
    while (shape := list(topology.shape)) and max(shape) > 2 and topology.size % 2 == 0:
        side = 0 if topology.chip.platform == "cuda" and shape[0] > 1 else shape.index(max(shape))
        shape[side] //= 2
        topology = _of_shape(topology, shape)
        yield topology


def _of_shape(topology: Topology, shape: list[int]) -> Topology:
    if topology.chip.platform == "tpu":
        shape = sorted(shape)
    kind = topology.name.partition(":")[0]
    return dataclasses.replace(topology, name=f"{kind}:{'x'.join(map(str, shape))}", shape=tuple(shape))


def _cannot_fit(name: str, config: ml_collections.ConfigDict, topology: Topology) -> bool:
    """Whether a program cannot be cut over a mesh, or what it is given and its cache are too much already."""
    shape = parallel.mesh_shape(config.parallel, topology.size)
    if plan.uneven_model(config, shape):
        return True
    program = programs.build(name, plan.changed(config, plan.mesh_keys(shape)))
    if plan.uneven_rows(program, shape):
        return True
    arguments = compiling.placed(
        program, compiling.mesh(topology, shape), shard_optimizer_state=config.parallel.shard_optimizer_state
    )
    return compiling.residents(arguments).total + program.cache / topology.size > topology.chip.memory
