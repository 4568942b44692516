"""What logits say of given tokens, without ever holding the logits of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.models import partitioning
from instructjax.models.transformer import LanguageModel

Array = jax.Array
Tree = Any  # a pytree of arrays


def read_logits(
    model: LanguageModel,
    params: Any,
    hidden: Array,
    tokens: Array,
    weights: Array,
    read: Callable[[Array, Array], Tree],
) -> Tree:
    """`read` of each token's logits, some columns at a time, forward and backward.

    As many columns are computed together as hold `model.config.logits_chunk` tokens on each
    device. The backward pass computes their logits once more. Columns in which no row has a
    weight are not computed.

    Args:
      model: unembeds.
      params: its weights.
      hidden: [B, T, d], from `LanguageModel.hidden`; the logits of each column are to say
        something of the token in the same column.
      tokens: [B, T] int32.
      weights: [B, T]; what is read where a weight is 0 does not matter.
      read: `read(logits [B, C, V], tokens [B, C])` -> a pytree of arrays [B, C].

    Returns:
      The pytree with arrays [B, T], 0 where the weight is 0.
    """
    rows, length = tokens.shape
    size = min(-(-model.config.logits_chunk * partitioning.devices_of_rows(rows) // rows), length)
    count = -(-length // size)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, count * size - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    def compute(hidden: Array, tokens: Array, weights: Array) -> Tree:
        logits = model.apply({"params": params}, hidden, method="unembed")
        return jax.tree.map(lambda x: jnp.where(weights > 0, x, 0), read(logits, tokens))

    @jax.checkpoint
    def chunk(arrays: tuple[Array, Array, Array]) -> Tree:
        arrays = partitioning.constrain_rows(arrays)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, *arrays))
        return jax.lax.cond(jnp.any(arrays[2] > 0), compute, lambda *_: nothing, *arrays)

    parts = jax.lax.map(chunk, (cut(hidden), cut(tokens), cut(weights)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], parts)


def weighted_first(weights: Array, *arrays: Array) -> tuple[Array, ...]:
    """Moves what has a weight to the left of each row, in its order, so that `read_logits` leaves out the rest.

    Args:
      weights: [B, T].
      *arrays: [B, T, ...].

    Returns:
      The weights and the arrays.
    """
    order = jnp.argsort(weights == 0, axis=1, stable=True)

    def move(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)

    return move(weights), *map(move, arrays)
