"""Splash attention: a fused TPU kernel that never holds the attention weights and skips blocks that no query sees.

In the kernel, a query sees the keys with its own number. What continuations of a prefix see is not of that form: they
call it twice, for their own tokens and for those of the prefix, and the results are joined.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds, SplashAttentionKernel
from jaxtyping import Bool, Float, Int

from instructjax.models import partitioning, remat
from instructjax.typing import Array

BLOCK = 128  # the fewest queries and keys of a tile; lengths are multiples of it
MAX_BLOCK = 512  # larger tiles read the keys less often, and this many fit into the memory of a core


def why_not(query: Float[Array, "B H T D"], key: Float[Array, "B H S D"]) -> str | None:
    """Returns why the kernel does not support these arrays, or None if it does."""
    if query.shape[2] != key.shape[2]:
        return "queries of a cache"
    if query.shape[2] % BLOCK:
        return f"{query.shape[2]} tokens, not a multiple of {BLOCK}"
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"arrays of {query.dtype}"
    return None


def attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B G T D"],
    value: Float[Array, "B G T D"],
    segments: Int[Array, "B T"],
    banded: Bool[Array, ""] | None,
    window: int | None,
    *,
    branches: Int[Array, "B T"] | None = None,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B H T D"]:
    """Computes causal attention within segments, like `models.attention.attention` with a mask of these segments.

    On a mesh each device computes its own rows and heads.

    Args:
      query: q, scaled.
      key: k.
      value: v.
      segments: 0 on padding, which sees padding.
      banded: whether to see the last `window` columns only; None if no layer does.
      window: number of columns, including the query's own; None if `banded` is None.
      branches: None, or of each token 0 on a prefix, and a different number on each of its continuations, which do not
        see each other; see `models.attention.branch_mask`. Not supported with `banded`.
      cap: None, or c where scores s become c tanh(s / c).
      interpret: emulates the kernel without a TPU, for tests.
    """
    length = query.shape[2]

    def kernel(mask: masks.Mask, heads: int, *, save_residuals: bool = False) -> SplashAttentionKernel:
        size = next(size for size in (MAX_BLOCK, MAX_BLOCK // 2, BLOCK) if length % size == 0)
        sizes = splash.BlockSizes(
            block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
        )
        return splash.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=cap,
            residual_checkpoint_name=None if save_residuals else remat.ATTENTION,
            save_residuals=save_residuals,
            interpret=interpret,
        )

    def by_row(one_row: SplashAttentionKernel) -> Callable[..., Array]:
        return jax.vmap(lambda q, k, v, s: one_row(q, k, v, segment_ids=SegmentIds(s, s)))

    def local(query: Array, key: Array, value: Array, segments: Array, *others: Array) -> Array:
        arrays, causal = (query, key, value, segments), masks.CausalMask((length, length))
        if branches is not None:
            one_row = kernel(causal, query.shape[1], save_residuals=True)
            return jax.vmap(functools.partial(_with_prefix, one_row))(*arrays, *others)
        dense = by_row(kernel(causal, query.shape[1]))
        if window is None:
            return dense(*arrays)
        near = by_row(kernel(masks.LocalMask((length, length), (window - 1, 0), 0), query.shape[1]))
        return jax.lax.cond(others[0], near, dense, *arrays)

    given = tuple(x for x in (banded, branches) if x is not None)
    mesh = partitioning.mesh_of_context()
    if mesh is None:
        return local(query, key, value, segments, *given)
    # By the heads of the keys, so that the query heads that share one stay on its device.
    rows = partitioning.spec(("batch", "heads", None, None), key.shape, mesh)
    tokens, whole = jax.sharding.PartitionSpec(rows[0], None), jax.sharding.PartitionSpec()
    specs = (rows, rows, rows, tokens, *[whole if x is banded else tokens for x in given])
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
        query, key, value, segments, *given
    )


def _with_prefix(
    kernel: SplashAttentionKernel,
    query: Float[Array, "H T D"],
    key: Float[Array, "G T D"],
    value: Float[Array, "G T D"],
    segments: Int[Array, "T"],
    branches: Int[Array, "T"],
) -> Float[Array, "H T D"]:
    """Computes the attention of one row with continuations: over each part's own tokens, and over its prefix."""
    own = segments * (len(segments) + 1) + branches  # a number for each prefix and each continuation
    prefix = SegmentIds(jnp.where(branches > 0, segments, -1), jnp.where(branches > 0, -2, segments))
    arrays = kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info, query, key, value
    return _joined(tuple(kernel.kwargs.items()), *arrays, SegmentIds(own, own), prefix)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined(
    options: tuple[tuple[str, Any], ...],
    forward: Any,
    dq: Any,
    dkv: Any,
    query: Array,
    key: Array,
    value: Array,
    *parts: SegmentIds,
) -> Array:
    """Computes one softmax over the keys of several parts.

        mixed = sum_i exp(l_i - l) mixed_i        l = log sum_i exp l_i

    where l_i is the log of the sum of the exponentials of part i's scores. A query without keys in a part has the least
    l_i there, and so the weight 0.

    Args:
      options: of the kernel.
      forward: its mask in the forward pass.
      dq: its mask for the gradient of the queries.
      dkv: its mask for the gradients of keys and values.
      query: q, scaled.
      key: k.
      value: v.
      *parts: the queries and keys of each part; a query sees the keys with its number.
    """
    return _joined_forward(options, forward, dq, dkv, query, key, value, *parts)[0]


def _joined_forward(
    options: tuple[tuple[str, Any], ...], forward: Any, dq: Any, dkv: Any, *arrays: Any
) -> tuple[Array, tuple[Any, ...]]:
    query, key, value, *parts = arrays
    kernel = SplashAttentionKernel(forward, dq, dkv, **dict(options))
    found = [kernel(query, key, value, segment_ids=part) for part in parts]
    total = functools.reduce(jnp.logaddexp, [logs for _, (logs,) in found])
    mixed = sum(jnp.exp(logs - total)[..., None] * mixed for mixed, (logs,) in found).astype(query.dtype)
    mixed, total = (checkpoint_name(x, remat.ATTENTION) for x in (mixed, total))
    return mixed, (dq, dkv, query, key, value, parts, mixed, total)


def _joined_backward(options: tuple[tuple[str, Any], ...], saved: tuple[Any, ...], gradient: Array) -> tuple[Any, ...]:
    # The gradient of attention to one part is that of the kernel, with the sums and the result of all parts.
    dq, dkv, query, key, value, parts, mixed, total = saved
    gradients = []
    for part in parts:
        residuals = query, key, value, part, None, mixed, total, dq, dkv
        gradients.append(splash._splash_attention_bwd(**dict(options), res=residuals, do=gradient)[3:6])
    return (None, None, None, *(sum(x) for x in zip(*gradients, strict=True)), *[None] * len(parts))


_joined.defvjp(_joined_forward, _joined_backward)
