"""Masked dot-product attention: which keys a query sees, and what it reads from them."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from absl import logging

from instructjax.models import flash, matmul

MASKED = -1e30  # finite, so that a row of padding gives an average and not a NaN

# Queries of a training pass are computed in blocks, each with the keys before its end: at most 8 blocks, as each is
# compiled, and none of fewer queries than 128, whose weights fit into a core's cache.
MAX_BLOCKS, MIN_BLOCK = 8, 128


@flax.struct.dataclass
class Visible:
    """What the queries of a pass see.

    Attributes:
      dense: [B, T, S] bool, in layers that see all.
      banded: the same of the odd layers, where those see a window only; else None.
      segments: [B, T] int32, where `dense` is no more than that queries see what comes before them in their segment,
        and `banded` that they see the last columns of it: fused kernels know segments in the place of masks. Or None.
      window: of `banded`, tokens.
    """

    dense: jax.Array
    banded: jax.Array | None = None
    segments: jax.Array | None = None
    window: int | None = flax.struct.field(pytree_node=False, default=None)


def attention_mask(
    query_index: jax.Array, key_index: jax.Array, query_segments: jax.Array, key_segments: jax.Array
) -> jax.Array:
    """Which keys each query sees: those at or before it, in its own segment, that are no padding.

    Args:
      query_index: [B, T] or [1, T] int32, where each query stands in its row.
      key_index: [B, S] or [1, S] int32, where each key stands in its row.
      query_segments: [B, T] int32, 0 on padding.
      key_segments: [B, S] int32, 0 on padding and on unused slots of a cache.

    Returns:
      [B, T, S] bool.
    """
    causal = key_index[:, None, :] <= query_index[:, :, None]
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return causal & same & (key_segments > 0)[:, None, :]


def band_mask(query_positions: jax.Array, key_positions: jax.Array, window: int) -> jax.Array:
    """Which keys are among the last `window` positions, the query's own included.

    Positions, not columns: of an answer that stands beside others, the prompt may be far away in its row.

    Args:
      query_positions: [B, T] int32.
      key_positions: [B, S] int32.
      window: at least 1.

    Returns:
      [B, T, S] bool, to be joined with `attention_mask`.
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def branch_mask(query_branches: jax.Array, key_branches: jax.Array) -> jax.Array:
    """Which keys lie on the way to each query: those of the common prefix, and those of its own branch.

    Args:
      query_branches: [B, T] int32, 0 on a prefix, and another number on each of its continuations.
      key_branches: [B, S] int32.

    Returns:
      [B, T, S] bool, to be joined with `attention_mask`.
    """
    return (key_branches == 0)[:, None, :] | (query_branches[:, :, None] == key_branches[:, None, :])


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: Visible,
    layer: jax.Array | int = 0,
    matmul_dtype: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v over the keys that each query sees, softmax in float32 at least.

    On a GPU, half-precision arrays go to cuDNN's fused kernel, and on a TPU whole rows to splash attention, where
    their shapes allow it, and so never hold the [B, H, T, S] weights; where not, the reason is logged. Everything else
    is two einsums for each block of queries, and what comes after a block is not computed.

    Args:
      query: [B, H, T, D].
      key: [B, H, S, D].
      value: [B, H, S, D].
      visible: what they see; where T = S, no query sees a key in a later column. A query that
        sees no key gets an arbitrary finite result.
      layer: the odd ones see `visible.banded`.
      matmul_dtype: the dtype that the factors of both products are rounded to; that of the arrays if
        not given. Of a single query they are not: reading the keys takes longer.

    Returns:
      [B, H, T, D] in the dtype of `value`.
    """
    odd = None if visible.banded is None else jnp.asarray(layer) % 2 == 1
    mask = visible.dense if odd is None else jnp.where(odd, visible.banded, visible.dense)
    if _fits_cudnn(query, key):
        query, key, value = (a.swapaxes(1, 2) for a in (query, key, value))
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="cudnn")
        return mixed.swapaxes(1, 2)
    matmul_dtype = query.dtype if query.shape[2] == 1 or matmul_dtype is None else jnp.dtype(matmul_dtype)
    if jax.default_backend() == "tpu":
        reason = _why_no_splash(query, key, visible)
        if reason is None:
            return flash.attention(query, key, value, visible.segments, odd, visible.window)
        logging.log_first_n(logging.INFO, "attention is two einsums: %s", 1, reason, use_call_stack=True)
    return _einsums(query, key, value, mask, matmul_dtype)


def _einsums(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, matmul_dtype: jnp.dtype) -> jax.Array:
    length = query.shape[2]
    if length != key.shape[2] or length <= MIN_BLOCK:
        return _attend(query, key, value, mask, matmul_dtype)
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    blocks = [(start, min(start + size, length)) for start in range(0, length, size)]
    parts = [
        _attend(query[:, :, i:j], key[:, :, :j], value[:, :, :j], mask[:, i:j, :j], matmul_dtype) for i, j in blocks
    ]
    return jnp.concatenate(parts, axis=2)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, matmul_dtype: jnp.dtype) -> jax.Array:
    scale = query.shape[-1] ** -0.5
    precision = jnp.promote_types(query.dtype, jnp.float32)
    scores = matmul.einsum("bhtd,bhsd->bhts", query * scale, key, matmul_dtype, precision)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1)
    return matmul.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value, matmul_dtype, value.dtype)


def _why_no_splash(query: jax.Array, key: jax.Array, visible: Visible) -> str | None:
    if visible.segments is None:
        return "continuations of one prefix" if query.shape[2] == key.shape[2] else "queries of a cache"
    return flash.why_not(query, key)


def _fits_cudnn(query: jax.Array, key: jax.Array) -> bool:
    # What cuDNN's fused attention takes, with a mask and with a gradient.
    lengths_even = query.shape[2] % 2 == 0 and key.shape[2] % 2 == 0
    heads_fit = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and heads_fit and lengths_even
