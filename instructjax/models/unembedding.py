"""Reads logits without holding those of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, PyTree, Shaped

from instructjax.models import partitioning
from instructjax.typing import AnyArray, Array, Model, Params, Tree

# read(logits, tokens) -> a pytree of arrays like `tokens`, such as `losses.log_probs`
Read: TypeAlias = Callable[[Float[Array, "B T V"], Int[Array, "B T"]], Tree]


def read_logits(
    model: Model,
    params: Params,
    hidden: Float[Array, "B T d"],
    tokens: Int[AnyArray, "B T"],
    weights: Shaped[AnyArray, "B T"],
    read: Read,
) -> PyTree[Shaped[Array, "B T"]]:
    """Applies `read` to the logits of each token, a chunk of columns at a time, forward and backward.

    A chunk has about `model.config.logits_chunk` tokens on each device. The backward pass
    recomputes its logits. Chunks without any weight are skipped. On a mesh, the devices of "tensor" share the tokens of
    a chunk or the vocabulary, and the unembedding is gathered once, not once per chunk.

    Args:
      model: computes the logits.
      params: its weights.
      hidden: from `LanguageModel.hidden`; column t gives the logits for token t.
      tokens: the tokens to read the logits of.
      weights: where a weight is 0, the result is 0, whatever the token.
      read: is called with a chunk of columns; see `Read`.

    Returns:
      The pytree that `read` returns, 0 where the weight is 0.
    """
    rows, length = tokens.shape
    size = min(-(-model.config.logits_chunk * partitioning.devices_of_rows(rows) // rows), length)
    devices = partitioning.devices_of("length")
    size = -(-size // devices) * devices
    count = -(-length // size)
    params = model.unembedding_params(params)

    def cut(x: AnyArray) -> Array:
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


def weighted_first(
    weights: Shaped[AnyArray, "B T"], *arrays: Shaped[AnyArray, "B T ..."]
) -> tuple[Shaped[Array, "B T ..."], ...]:
    """Moves the columns with a weight to the left of each row, in order, so that `read_logits` skips the rest.

    Returns:
      The weights and the arrays.
    """
    order = jnp.argsort(weights == 0, axis=1, stable=True)

    def move(x: AnyArray) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)

    return move(weights), *map(move, arrays)
