"""Reads the tensors of weight files one by one, and places weights on the devices of a mesh shard by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import CheckpointError
from instructjax.typing import AnyArray

# Of a shard, along each axis: its first index, and the one after its last.
Bounds: TypeAlias = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor in a file. It is read when NumPy needs its values, as in `np.asarray(tensor)`, and not kept.

    Attributes:
      shape: of the tensor.
      dtype: of its elements.
      read: returns its values, an array of this shape and type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        if copy:
            return np.array(values, dtype)
        return values if dtype is None else values.astype(dtype, copy=False)


Tensor: TypeAlias = AnyArray | FileTensor


def first_rows(tensor: Tensor, rows: int) -> FileTensor:
    """Returns the first rows of a tensor, which is not read yet."""
    return FileTensor((rows, *tensor.shape[1:]), np.dtype(tensor.dtype), lambda: np.asarray(tensor)[:rows])


def read_finite(tensor: Tensor, where: str) -> np.ndarray:
    """Reads a tensor.

    Raises:
      CheckpointError: it has NaN or infinity, also if only in float32.
    """
    values = np.asarray(tensor)
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(values.astype(np.float32, copy=False)).all()
    if not is_finite:
        raise CheckpointError(f"{where}: expected finite numbers, found NaN or infinity")
    return values


class ShardedWeight:
    """A weight that is filled on the host, layer by layer, and then placed.

    A process holds only the shards of its own devices. Without a sharding, it holds the whole weight.
    """

    def __init__(self, leaf: jax.ShapeDtypeStruct):
        """Allocates the shards.

        Args:
          leaf: shape and type of the weight, with its sharding if it is placed on a mesh.
        """
        self._leaf = leaf
        indices: Sequence[Any] = [(slice(None),) * len(leaf.shape)]
        if leaf.sharding is not None:
            indices = list(leaf.sharding.addressable_devices_indices_map(leaf.shape).values())
        self._shards: dict[Bounds, np.ndarray] = {}
        for bounds in map(self._bounds, indices):
            if bounds not in self._shards:  # replicas share one
                self._shards[bounds] = np.empty([end - start for start, end in bounds], leaf.dtype)

    def fill(self, values: np.ndarray, layer: int | None = None) -> None:
        """Writes values, rounded to the type of the weight.

        Args:
          values: of the weight; or of one layer, without the first axis.
          layer: its number, if the weight is stacked over layers.
        """
        for bounds, shard in self._shards.items():
            if layer is None:
                shard[...] = values[_slices(bounds)]
            elif bounds[0][0] <= layer < bounds[0][1]:
                shard[layer - bounds[0][0]] = values[_slices(bounds[1:])]

    def place(self) -> jax.Array:
        """Returns the weight with its sharding, or as `jnp.asarray` places it. Call it last."""
        shape, sharding = self._leaf.shape, self._leaf.sharding
        if sharding is None:
            (whole,) = self._shards.values()
            return jnp.asarray(whole)
        return jax.make_array_from_callback(shape, sharding, lambda index: self._shards[self._bounds(index)])

    def _bounds(self, index: Sequence[slice] | None) -> Bounds:
        assert index is not None  # it is None on other processes' devices only
        return tuple(axis.indices(size)[:2] for axis, size in zip(index, self._leaf.shape, strict=True))


def _slices(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in bounds)
