"""The key-value cache of a decoder: what is kept of the tokens seen so far.

Letters in shapes: L layers, B rows, H heads, S slots, D width of a head, T tokens that are appended.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from instructjax.models.config import TransformerConfig
from instructjax.models.partitioning import constrain


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far. Rows are aligned: one length for all.

    Attributes:
      keys: [L, B, H, S, D], so that the keys of a head lie together; or of each layer [B, H, S, D].
      values: like `keys`.
      segments: [B, S] int32, 0 on padding and on unused slots.
      positions: [B, S] int32.
      length: int32 scalar, the slot that is written next: the number of slots used, by tokens and by padding, unless
        the caller has turned back to the first.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    segments: jax.Array
    positions: jax.Array
    length: jax.Array


def init_cache(config: TransformerConfig, batch_size: int, max_length: int) -> Cache:
    """An empty cache with `max_length` slots (S) for each of `batch_size` rows (B)."""

    def empty(*layers):
        return _cached(jnp.zeros((*layers, batch_size, config.num_heads, max_length, config.d_head), config.dtype))

    def slots():
        return tuple(empty() for _ in range(config.num_layers)) if config.cache_by_layer else empty(config.num_layers)

    return Cache(
        keys=slots(),
        values=slots(),
        segments=jnp.zeros((batch_size, max_length), jnp.int32),
        positions=jnp.zeros((batch_size, max_length), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def written(cache: Cache, rows: jax.Array, slots: jax.Array, others: Cache) -> Cache:
    """A cache with rows of another in the place of what some of its rows have in some slots.

    Args:
      cache: of B rows.
      rows: [K] int32, the row that each row of the other goes to; B or more: nowhere.
      slots: [S'] int32, the slots that its slots go to.
      others: of K rows and S' slots.
    """

    def tokens(into: jax.Array, new: jax.Array) -> jax.Array:
        return into.at[rows[:, None], slots].set(new, mode="drop")

    def heads(into: jax.Array, new: jax.Array) -> jax.Array:
        place = (slice(None),) * (into.ndim - 4) + (rows[:, None, None], jnp.arange(into.shape[-3])[:, None], slots)
        return _cached(into.at[place].set(new, mode="drop"))

    return cache.replace(
        keys=jax.tree.map(heads, cache.keys, others.keys),
        values=jax.tree.map(heads, cache.values, others.values),
        segments=tokens(cache.segments, others.segments),
        positions=tokens(cache.positions, others.positions),
    )


def append(cached: jax.Array, new: jax.Array, layer: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cache with T tokens of a layer [B, H, T, D] written behind the others, and that layer of it."""
    if cached.ndim == new.ndim:
        cached = _cached(jax.lax.dynamic_update_slice(cached, new, (0, 0, start, 0)))
        return cached, cached
    cached = _cached(jax.lax.dynamic_update_slice(cached, new[None], (layer, 0, 0, start, 0)))
    return cached, jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)


def _cached(x: jax.Array) -> jax.Array:
    """Keys or values [..., B, H, S, D] of a cache, cut by rows and by heads."""
    return constrain(x, *[None] * (x.ndim - 4), "batch", "heads", None, None)
