"""Masked dot-product attention, and the masks."""

from __future__ import annotations

import functools
import logging

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from instructjax.models import flash, matmul, remat
from instructjax.models.partitioning import platform_of_context
from instructjax.typing import Array, Index

LOG = logging.getLogger("instructjax.models")

MASKED = -1e30  # finite, so that a row of padding gives an average instead of NaN

CUDNN_CAPABILITY = 8  # the first major compute capability for which cuDNN has fused attention (A100)

# Queries of a training pass are computed in blocks, each with the keys up to its end. There are at most 8 blocks,
# because each is compiled, and each has at least 128 queries, whose weights fit into a core's cache.
MAX_BLOCKS, MIN_BLOCK = 8, 128


class Visible(flax.struct.PyTreeNode):
    """The keys that the queries of a pass see.

    Attributes:
      dense: the mask of layers that see all positions.
      banded: the mask of the local layers, if those see only a window; else None.
      segments: the segments of a row, if `dense` lets each query see all of its segment up to itself, and `banded`
        the last columns of that; else None. Fused kernels take segments instead of masks.
      branches: with `segments`, if a query sees only the prefix of its segment and its own branch of it; else None.
      own: with an empty cache, what the queries see of the keys of their own pass; else None. That is all they see.
      window: of `banded`, in tokens.
      pattern: which layers are dense (D) and local (L), repeated over the layers.
    """

    dense: Bool[Array, "B T S"]
    banded: Bool[Array, "B T S"] | None = None
    segments: Int[Array, "B T"] | None = None
    branches: Int[Array, "B T"] | None = None
    own: Visible | None = None
    window: int | None = flax.struct.field(pytree_node=False, default=None)
    pattern: str = flax.struct.field(pytree_node=False, default="DL")


def is_local(pattern: str, layer: Index) -> Bool[Array, ""]:
    """Finds whether a layer is local (L) in a pattern of D and L, which is repeated over the layers."""
    place = jnp.asarray(layer) % len(pattern)
    return functools.reduce(jnp.logical_or, [place == i for i, kind in enumerate(pattern) if kind == "L"])


def attention_mask(
    query_index: Int[Array, "#B T"],
    key_index: Int[Array, "#B S"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
) -> Bool[Array, "B T S"]:
    """Finds the keys that each query sees: those at or before it, in its own segment, except padding.

    Args:
      query_index: the column of each query in its row.
      key_index: the column of each key in its row.
      query_segments: 0 on padding.
      key_segments: 0 on padding and on unused slots of a cache.
    """
    causal = key_index[:, None, :] <= query_index[:, :, None]
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return causal & same & (key_segments > 0)[:, None, :]


def band_mask(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"], window: int
) -> Bool[Array, "B T S"]:
    """Finds the keys among the last `window` positions, including the query's own.

    It compares positions, not columns: other answers may lie between an answer and its prompt. Combine it with
    `attention_mask`.

    Args:
      query_positions: the position of each query in its segment.
      key_positions: the position of each key in its segment.
      window: at least 1.
    """
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def branch_mask(query_branches: Int[Array, "B T"], key_branches: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
    """Finds the keys of the common prefix and of each query's own branch. Combine it with `attention_mask`.

    Args:
      query_branches: 0 on a prefix, and a different number on each of its continuations.
      key_branches: likewise.
    """
    return (key_branches == 0)[:, None, :] | (query_branches[:, :, None] == key_branches[:, None, :])


def attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B G S D"],
    value: Float[Array, "B G S D"],
    visible: Visible,
    layer: Index = 0,
    matmul_dtype: DTypeLike | None = None,
    *,
    scale: float | None = None,
    cap: float = 0.0,
) -> Float[Array, "B H T D"]:
    """Computes softmax(q k^T / sqrt(D)) v over the keys that each query sees, with softmax in at least float32.

    Each H / G neighboring query heads share a head of keys and values.

    If the shapes allow it, half-precision arrays on an NVIDIA GPU of compute capability 8.0 or later go to cuDNN's
    fused kernel, and whole rows on a TPU to splash attention; neither ever holds the [B, H, T, S] weights. If the
    arrays do not allow it, the reason is logged. Everything else is two einsums per block of queries, without the keys
    after the block.

    Args:
      query: q.
      key: k.
      value: v.
      visible: the keys that the queries see. If T = S, no query sees a key in a later column. A query that
        sees no key gets an arbitrary finite result.
      layer: number of the layer; local layers of `visible.pattern` see `visible.banded`.
      matmul_dtype: the dtype to which the operands of both matmuls are rounded; by default that of the arrays.
        Operands of a single query are not rounded, because reading the keys takes longer.
      scale: the factor of q k^T; 1 / sqrt(D) by default.
      cap: if not 0, scores s become cap * tanh(s / cap).

    Returns:
      The mixed values, in the dtype of `value`.
    """
    local, mask = None, visible.dense
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if visible.banded is not None:
        local = is_local(visible.pattern, layer)
        mask = jnp.where(local, visible.banded, visible.dense)
    kernel = fused_kernel(query, key, visible, cap)
    if kernel == "cudnn":
        query, key, value = (a.swapaxes(1, 2) for a in (query, key, value))
        # With as many keys as queries the mask is causal; told so, cuDNN skips the blocks of later keys.
        causal = query.shape[1] == key.shape[1]
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None], scale=scale, is_causal=causal, implementation="cudnn"
        )
        return mixed.swapaxes(1, 2)  # `remat.policy` recognizes the kernel
    operand_dtype = query.dtype if query.shape[2] == 1 or matmul_dtype is None else jnp.dtype(matmul_dtype)
    if kernel == "splash" and visible.segments is not None:
        given = query * scale, key, value, visible.segments
        return flash.attention(*given, local, visible.window, branches=visible.branches, cap=cap or None)
    return checkpoint_name(_einsums(query, key, value, mask, operand_dtype, scale, cap), remat.ATTENTION)


def fused_kernel(
    query: Float[Array, "B H T D"], key: Float[Array, "B G S D"], visible: Visible, cap: float
) -> str | None:
    """Returns the fused kernel that `attention` calls for these arrays: "cudnn", "splash" or None."""
    if query.shape[2] == 1:  # a step of decoding, for which no kernel is meant
        return None
    platform = platform_of_context()
    if platform == "tpu":
        kernel, reason = "splash", _why_no_splash(query, key, visible)
    elif platform == "gpu":
        kernel, reason = "cudnn", _why_no_cudnn(query, key, cap)
    else:
        return None
    if reason is None:
        return kernel
    _log_einsums(reason)
    return None


@functools.cache  # each reason is logged once
def _log_einsums(reason: str) -> None:
    LOG.info("attention is two einsums: %s", reason)


def _einsums(
    query: Array, key: Array, value: Array, mask: Array, matmul_dtype: jnp.dtype, scale: float, cap: float = 0.0
) -> Array:
    length = query.shape[2]
    if length != key.shape[2] or length <= MIN_BLOCK:
        return _attend(query, key, value, mask, matmul_dtype, scale, cap)
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    blocks = [(start, min(start + size, length)) for start in range(0, length, size)]
    parts = [
        _attend(query[:, :, i:j], key[:, :, :j], value[:, :, :j], mask[:, i:j, :j], matmul_dtype, scale, cap)
        for i, j in blocks
    ]
    return jnp.concatenate(parts, axis=2)


def _attend(
    query: Array, key: Array, value: Array, mask: Array, matmul_dtype: jnp.dtype, scale: float, cap: float
) -> Array:
    precision = jnp.promote_types(query.dtype, jnp.float32)
    (rows, heads, length, width), (groups, slots) = query.shape, key.shape[1:3]
    # The queries of the heads that share keys are more queries of one head, so both products stay ordinary matmuls.
    shared = (query * scale).reshape(rows, groups, -1, width)
    scores = matmul.einsum("bhtd,bhsd->bhts", shared, key, matmul_dtype, precision)
    scores = scores.reshape(rows, heads, length, slots)
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1).astype(value.dtype)
    weights = weights.reshape(rows, groups, -1, slots)
    mixed = matmul.einsum("bhts,bhsd->bhtd", weights, value, matmul_dtype, value.dtype)
    return mixed.reshape(rows, heads, length, width)


def _why_no_splash(query: Array, key: Array, visible: Visible) -> str | None:
    if visible.segments is None:
        return "queries of a cache"
    return flash.why_not(query, key)


def _why_no_cudnn(query: Array, key: Array, cap: float) -> str | None:
    """Returns why cuDNN's fused attention, with a mask and with a gradient, does not support these arrays."""
    device = jax.devices()[0]
    if device.platform != "gpu":  # as in a plan
        return "cuDNN's kernel is compiled for present GPUs only"
    if not _has_cudnn_attention(device):
        return f"no GPU of compute capability {CUDNN_CAPABILITY}.0 or later"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's kernel takes bfloat16 or float16, not {query.dtype}"
    if query.shape[-1] % 8 or query.shape[-1] > 128:
        return f"cuDNN's kernel takes heads of a multiple of 8 up to 128 units, not of {query.shape[-1]}"
    if query.shape[2] % 2 or key.shape[2] % 2:
        return f"cuDNN's kernel takes even numbers of queries and keys, not {query.shape[2]} and {key.shape[2]}"
    return "cuDNN's kernel does not cap scores" if cap else None


def _has_cudnn_attention(gpu: jax.Device) -> bool:
    # An AMD GPU is on the platform "gpu", too, and names its architecture ("gfx90a") as its compute capability.
    major, _, _ = str(gpu.compute_capability).partition(".")
    return major.isdigit() and int(major) >= CUDNN_CAPABILITY
