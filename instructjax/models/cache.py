"""The key-value cache of a decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from instructjax.models.config import TransformerConfig
from instructjax.models.partitioning import constrain
from instructjax.typing import Array, Index

Slots: TypeAlias = Float[
    Array, "*L B G S D"
]  # keys or values of one layer, or of all; the slots of a head are contiguous


class Cache(flax.struct.PyTreeNode):
    """Keys and values of the tokens seen so far. Rows are aligned: all have the same length.

    Attributes:
      keys: of all layers in one array, or one array per layer.
      values: like `keys`.
      segments: 0 on padding and on unused slots.
      positions: of each token in its segment.
      length: the slot that is written next. This is the number of slots used by tokens and padding, unless
        the caller has wrapped around to the first slot.
      empty: whether nothing was written, so that the first tokens see only each other.
    """

    keys: Slots | tuple[Slots, ...]
    values: Slots | tuple[Slots, ...]
    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]
    empty: bool = flax.struct.field(pytree_node=False, default=False)


def init_cache(config: TransformerConfig, batch_size: int, max_length: int) -> Cache:
    """Returns an empty cache with `max_length` slots (S) for each of `batch_size` rows (B)."""

    def empty(*layers: int) -> Slots:
        return _cached(jnp.zeros((*layers, batch_size, config.kv_heads, max_length, config.d_head), config.dtype))

    def slots() -> Slots | tuple[Slots, ...]:
        return tuple(empty() for _ in range(config.num_layers)) if config.cache_by_layer else empty(config.num_layers)

    return Cache(
        keys=slots(),
        values=slots(),
        segments=jnp.zeros((batch_size, max_length), jnp.int32),
        positions=jnp.zeros((batch_size, max_length), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        empty=True,
    )


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Repeats each row, with its copies next to each other: responses to one prompt share its prefill."""

    def heads(x: Array) -> Array:
        return _cached(jnp.repeat(x, times, axis=x.ndim - 4))

    return dataclasses.replace(
        cache,
        keys=jax.tree.map(heads, cache.keys),
        values=jax.tree.map(heads, cache.values),
        segments=jnp.repeat(cache.segments, times, axis=0),
        positions=jnp.repeat(cache.positions, times, axis=0),
    )


def scatter_rows(cache: Cache, rows: Int[Array, "G n"], slots: Int[Array, "M"], others: Cache) -> Cache:
    """Scatters `others` into the given rows and slots of `cache`.

    Args:
      cache: of B rows in G groups, such as those of each device. No row goes to another group.
      rows: the row of its group in `cache` to which each row of `others` goes; rows numbered B / G or more are dropped.
      slots: the slot of `cache` to which each slot of `others` goes.
      others: of G n rows and M slots.
    """

    def tokens(into: Array, new: Array, rows: Array) -> Array:
        return into.at[rows[:, None], slots].set(new, mode="drop")

    def heads(into: Array, new: Array, rows: Array) -> Array:
        place = (slice(None),) * (into.ndim - 4) + (rows[:, None, None], jnp.arange(into.shape[-3])[:, None], slots)
        return into.at[place].set(new, mode="drop")

    def each_group(put: Callable[[Array, Array, Array], Array], into: Array, new: Array, axis: int) -> Array:
        def grouped(x: Array) -> Array:
            return x.reshape(*x.shape[:axis], len(rows), -1, *x.shape[axis + 1 :])

        return jax.vmap(put, (axis, axis, 0), axis)(grouped(into), grouped(new), rows).reshape(into.shape)

    def of_all_heads(into: Array, new: Array) -> Array:
        return _cached(each_group(heads, into, new, into.ndim - 4))

    return dataclasses.replace(
        cache,
        keys=jax.tree.map(of_all_heads, cache.keys, others.keys),
        values=jax.tree.map(of_all_heads, cache.values, others.values),
        segments=each_group(tokens, cache.segments, others.segments, 0),
        positions=each_group(tokens, cache.positions, others.positions, 0),
    )


def append(
    cached: Slots, new: Float[Array, "B G T D"], layer: Index, start: Index
) -> tuple[Slots, Float[Array, "B G S D"]]:
    """Writes T tokens of a layer at slot `start`; returns the cache, and its part for that layer."""
    if cached.ndim == new.ndim:
        cached = _cached(write(cached, new, 0, 0, start, 0))
        return cached, cached
    cached = _cached(write(cached, new[None], layer, 0, 0, start, 0))
    return cached, jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)


def write(into: Array, new: Array, *start: Index) -> Array:
    """Writes an array into a larger one at indices of any integer dtypes."""
    indices = [np.int32(index) if isinstance(index, int) else index.astype(jnp.int32) for index in start]
    return jax.lax.dynamic_update_slice(into, new, indices)


def _cached(x: Slots) -> Slots:
    """Shards keys or values by rows and by heads."""
    return constrain(x, *[None] * (x.ndim - 4), "batch", "heads", None, None)
