"""Partitions arrays over devices: names for the axes of arrays, and rules from names to mesh axes.

A mesh has the axes "data", "fsdp" and "tensor". Batches are sharded over the first two, weights over the last two:
over "fsdp" to store them only once (Rajbhandari et al. 2020, ZeRO-3), and over "tensor" to split the work on heads,
hidden units and the vocabulary (Shoeybi et al. 2019). Between blocks the residual stream may be sharded by position
over "tensor" (Korthikanti et al. 2022).

Partitioning changes no result. Without a mesh, and inside `pmap`, where each device sees only its own rows,
`constrain` does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from instructjax.typing import Array, Tree

AnyMesh: TypeAlias = Mesh | AbstractMesh

MESH_AXES = ("data", "fsdp", "tensor")

# Names of array axes, and the mesh axes over which each is sharded.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("tensor",),
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
    "width": ("fsdp",),  # of weights; activations are not sharded along it
    "slot_width": ("fsdp", "data"),  # of the optimizer's moments, if they are sharded over all devices (ZeRO-1)
}

# The axes of each kernel of a block, [L, in, out], by the end of its path.
_KERNELS: Mapping[str, tuple[str, str]] = {
    "attention/query": ("width", "heads"),
    "attention/key": ("width", "heads"),
    "attention/value": ("width", "heads"),
    "attention/out": ("heads", "width"),
    "feed_forward/in": ("width", "hidden"),
    "feed_forward/gate": ("width", "hidden"),
    "feed_forward/out": ("hidden", "width"),
}
# The axes of each weight, by the end of its path. Those of blocks are stacked over layers. All others are small and
# replicated. The adapters of a kernel, [L, in, r] and [L, r, out], are sharded as its sides are.
WEIGHTS: Mapping[str, tuple[str | None, ...]] = {
    "token_embedding": ("vocabulary", "width"),
    "unembedding": ("vocabulary", "width"),
    "position_embedding": (None, "width"),
    **{f"{name}/kernel": (None, *sides) for name, sides in _KERNELS.items()},
    **{f"{name}/bias": (None, out) for name, (_, out) in _KERNELS.items() if out != "width"},
    **{f"{name}/lora_a": (None, sides[0], None) for name, sides in _KERNELS.items()},
    **{f"{name}/lora_b": (None, None, sides[1]) for name, sides in _KERNELS.items()},
}


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> P:
    """Returns the partition of one array.

    Args:
      axes: a name in RULES for each axis, or None for an axis that is not sharded.
      shape: of the array. An axis that does not divide over all of its mesh axes, such as one token in
        decoding or a vocabulary of 50,257, is sharded over the first of them that it divides over, or not at all.
      mesh: has MESH_AXES.
    """
    cuts = [_cut(name, size, mesh) for name, size in zip(axes, shape, strict=True)]
    return P(*(cut if _count(cut, mesh) > 1 else None for cut in cuts))


def weight_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """Returns the names of a weight's axes: those of the entry of WEIGHTS with which its path ends, or else None.

    Args:
      path: of the weight in its tree, separated by "/".
      rank: its number of axes.
    """
    return next((axes for end, axes in WEIGHTS.items() if path.endswith(end)), (None,) * rank)


def gather_width(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Gathers a weight over "fsdp", so that no device needs the others for it; it stays sharded over "tensor".

    Args:
      x: the weight inside a compiled program. It is gathered in its dtype, so round it first.
      axes: its names; see `weight_axes`.
    """
    return constrain(constrain(x, *axes), *(None if axis == "width" else axis for axis in axes))


def tree_specs(tree: Tree, mesh: AnyMesh, *, shard_optimizer_state: bool = False) -> Tree:
    """Returns the partition of every leaf of a tree of weights, moments and counters.

    Args:
      tree: arrays or shapes, such as a TrainState; leaves are recognized by the end of their path.
      mesh: see `spec`.
      shard_optimizer_state: whether the optimizer's moments are also sharded over "data".
    """

    def leaf(path: tuple[Any, ...], x: Array | jax.ShapeDtypeStruct) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = weight_axes(name, len(x.shape))
        if shard_optimizer_state and "opt_state/" in name:
            axes = tuple("slot_width" if axis == "width" else axis for axis in axes)
        return spec(axes, x.shape, mesh)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrains an array inside a compiled program to its partition on the mesh of the context, if there is one."""
    mesh = mesh_of_context()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))


def axes_of_logits(vocabulary: int, rank: int) -> tuple[str | None, ...]:
    """Returns the names of the axes of logits [B, ..., V], so that the devices of "tensor" share the work.

    They are sharded by vocabulary if that divides over the mesh of the context, and else by position.
    """
    if vocabulary % devices_of("vocabulary") == 0 or rank < 3:
        return ("batch", *(None,) * (rank - 2), "vocabulary")
    return ("batch", "length", *(None,) * (rank - 2))


def constrain_rows(tree: Tree) -> Tree:
    """Applies `constrain` to arrays [B, ...] that are sharded by rows."""
    return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), tree)


def replicate(tree: Tree) -> Tree:
    """Replicates arrays of a compiled program on all devices, for results that the host reads."""
    return jax.tree.map(lambda x: constrain(x, *(None,) * jnp.ndim(x)), tree)


def devices_of_rows(rows: int) -> int:
    """Returns over how many devices `constrain_rows` shards this many rows: 1 without a mesh, and under `pmap`."""
    mesh = mesh_of_context()
    return 1 if mesh is None else _count(_cut("batch", rows, mesh), mesh)


def even_rows(rows: int) -> int:
    """Rounds a number of rows up to a multiple of the devices over which rows are sharded, so that all have as many."""
    return -(-rows // devices_of("batch")) * devices_of("batch")


def devices_of(name: str) -> int:
    """Returns over how many devices an axis of this name in RULES is sharded: 1 without a mesh, and under `pmap`."""
    mesh = mesh_of_context()
    return 1 if mesh is None else _count(RULES[name], mesh)


def mesh_of_context() -> AbstractMesh | None:
    """Returns the mesh over which the compiler shards arrays; None without one, and under `pmap`."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if automatic and set(MESH_AXES) <= set(mesh.axis_names) else None


def platform_of_context() -> str:
    """Returns the platform that a program is compiled for: that of the mesh of the context, or JAX's default.

    The devices of a mesh may be absent; see `experiments/plan.py`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def _cut(name: str | None, size: int, mesh: AnyMesh) -> tuple[str, ...]:
    """Returns the mesh axes over which an axis of this name and size is sharded; see `spec`."""
    cut = RULES[name] if name else ()
    while cut and size % _count(cut, mesh):
        cut = cut[:-1]
    return cut


def _count(axes: tuple[str, ...], mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
