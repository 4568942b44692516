"""Finds settings with which a program fits: more parts, another mesh or more chips."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator

import ml_collections

from instructjax.planning import chips, compiling, plan, programs
from instructjax.planning.chips import Topology
from instructjax.planning.plan import ProgramPlan
from instructjax.training import parallel

# For each program, the keys that divide its rows into parts, in the order in which they are tried.
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


def suggest(
    misfit: ProgramPlan, config: ml_collections.ConfigDict, topology: Topology, trials: int
) -> ProgramPlan | None:
    """Returns the nearest plan with which a program fits, or None if none is found.

    Tries more and smaller parts on the same mesh, then other meshes of the same chips, then
    other slices. A program whose arguments and cache alone exceed the memory is not compiled.

    Args:
      misfit: the plan of the program that does not fit.
      config: a whole recipe.
      topology: the chips of `misfit`.
      trials: the maximum number of programs to compile.
    """
    for place, changes in candidates(misfit, config, topology):
        if trials == 0:
            return None
        if _cannot_fit(misfit.name, plan.override(config, changes), place):
            continue
        trials -= 1
        found = plan.plan_program(misfit.name, config, place, changes)
        if found.fits:
            return found
    return None


def candidates(
    misfit: ProgramPlan, config: ml_collections.ConfigDict, topology: Topology
) -> Iterator[tuple[Topology, dict[str, int]]]:
    """Yields settings near a recipe's, the nearest first: a topology, and config keys to override."""
    keys = _PARTS[misfit.name]
    # First each key alone, then all together: a key may not divide the rows that fill the memory.
    settings: list[dict[str, int]] = [
        {key: factor * operator.attrgetter(key)(config) for key in chosen}
        for chosen in dict.fromkeys([*((key,) for key in keys), keys])
        for factor in (2, 4, 8, 16)
    ]
    for parts in settings:
        yield topology, parts
    # If rows do not divide, fewer chips may be the answer.
    places = [topology, *(_halved(topology) if misfit.obstacle else ()), *_doubled(topology)]
    for place in places:
        for parts in ({}, *settings):
            for mesh in _meshes(place.size, misfit.mesh[2]):
                if (place, mesh) != (topology, misfit.mesh):
                    yield place, {**plan.mesh_keys(mesh), **parts}


def _meshes(size: int, tensor: int) -> list[tuple[int, int, int]]:
    """Returns the meshes of `size` devices without "data", starting with those closest to `tensor`."""
    splits = [split for split in range(1, size + 1) if size % split == 0]
    splits.sort(key=lambda split: abs(math.log2(split / tensor)))
    return [(1, size // split, split) for split in splits]


def _doubled(topology: Topology) -> Iterator[Topology]:
    """Yields slices of two, four, ... times the chips, with the shortest side or the hosts doubled."""
    while 2 * topology.size <= topology.chip.largest:
        shape = list(topology.shape)
        if topology.chip.platform == "cuda":
            shape = [2, *shape] if len(shape) == 1 else [2 * shape[0], shape[1]]
        else:
            shape[shape.index(min(shape))] *= 2
        topology = _with_shape(topology, shape)
        yield topology


def _halved(topology: Topology) -> Iterator[Topology]:
    """Yields slices of a half, a quarter, ... of the chips, with the longest side or the hosts halved."""
    while (shape := list(topology.shape)) and max(shape) > 2 and topology.size % 2 == 0:
        side = 0 if topology.chip.platform == "cuda" and shape[0] > 1 else shape.index(max(shape))
        shape[side] //= 2
        topology = _with_shape(topology, shape)
        yield topology


def _with_shape(topology: Topology, shape: list[int]) -> Topology:
    if topology.chip.platform == "tpu":
        shape = sorted(shape)
    kind = topology.name.partition(":")[0]
    return dataclasses.replace(topology, name=f"{kind}:{'x'.join(map(str, shape))}", shape=tuple(shape))


def _cannot_fit(name: str, config: ml_collections.ConfigDict, topology: Topology) -> bool:
    """Returns whether a program cannot be sharded, or its arguments and cache alone exceed the memory."""
    shape = parallel.mesh_shape(config.parallel, topology.size)
    if plan.uneven_model(config, shape):
        return True
    program = programs.build(name, plan.override(config, plan.mesh_keys(shape)))
    if plan.uneven_rows(program, shape):
        return True
    arguments = compiling.abstract_arguments(
        program,
        parallel.make_mesh(shape, chips.devices(topology)),
        shard_optimizer_state=config.parallel.shard_optimizer_state,
    )
    return compiling.resident_bytes(arguments).total + program.cache / topology.size > topology.chip.memory
