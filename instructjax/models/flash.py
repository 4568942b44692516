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
        see each other; see `models.attention.branch_mask`. The window then counts positions of a text, not columns.
      cap: None, or c where scores s become c tanh(s / c).
      interpret: emulates the kernel without a TPU, for tests.
    """
    length = query.shape[2]

    def kernel(mask: masks.Mask, heads: int, *, save_residuals: bool = False) -> SplashAttentionKernel:
        size = next(size for size in (MAX_BLOCK, MAX_BLOCK // 2, BLOCK) if length % size == 0)
        sizes = splash.BlockSizes(
            block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
        )
        made: Any = splash.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=cap,
            residual_checkpoint_name=None if save_residuals else remat.ATTENTION,
            save_residuals=save_residuals,
            interpret=interpret,
        )
        return made

    def by_row(one_row: Any) -> Callable[..., Array]:
        return jax.vmap(lambda q, k, v, s: one_row(q, k, v, segment_ids=SegmentIds(s, s)))

    def local(query: Array, key: Array, value: Array, segments: Array, *others: Array) -> Array:
        arrays, causal = (query, key, value, segments), masks.CausalMask((length, length))
        if branches is not None:
            return _by_row_with_prefix(functools.partial(kernel, heads=query.shape[1]), arrays, others, window)
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


def _by_row_with_prefix(
    kernel: Callable[..., SplashAttentionKernel],
    arrays: tuple[Array, ...],
    others: tuple[Array, ...],
    window: int | None,
) -> Float[Array, "B H T D"]:
    """Computes the attention of rows with continuations: over each part's own tokens, and over its prefix.

    Args:
      kernel: makes a kernel for a mask.
      arrays: query, key, value and segments, by row.
      others: `banded`, if there is a window, and branches.
      window: see `attention`.
    """
    *banded, branches = others
    shape = (branches.shape[1],) * 2
    causal = kernel(masks.CausalMask(shape), save_residuals=True)

    def row(whole: SplashAttentionKernel, query: Array, key: Array, value: Array, *ids: Array) -> Array:
        segments, branches = ids
        own = segments * (len(segments) + 1) + branches  # a number for each prefix and each continuation
        prefix = SegmentIds(jnp.where(branches > 0, segments, -1), jnp.where(branches > 0, -2, segments))
        infos: list[tuple[Any, ...]] = [
            (one.fwd_mask_info, one.dq_mask_info, one.dkv_mask_info) for one in (whole, causal)
        ]
        if whole is not causal:
            infos[1] = tuple(_moved(info, branches) for info in infos[1])
        # The masks are functions of columns, which are among the options.
        options = tuple(whole.kwargs.items())
        return _joined((options, options), query, key, value, (*infos[0], SegmentIds(own, own)), (*infos[1], prefix))

    dense = jax.vmap(functools.partial(row, causal))
    if window is None:
        return dense(*arrays, branches)
    near = jax.vmap(functools.partial(row, kernel(masks.LocalMask(shape, (window - 1, 0), 0), save_residuals=True)))
    return jax.lax.cond(banded[0], near, dense, *arrays, branches)


def _moved(info: Any, branches: Int[Array, "T"]) -> Any:
    """Changes a kernel's `MaskInfo`: each continuation sees as if it came right after its prefix."""
    columns = jnp.arange(len(branches), dtype=jnp.int32)
    begins = branches != jnp.pad(branches, (1, 0))[:-1]
    start = jax.lax.cummax(jnp.where(begins, columns, 0))
    prefix_end = jax.lax.cummax(jnp.where(branches == 0, columns + 1, 0))
    # No tile is seen as a whole any more: the mask is computed in each that is not empty.
    return info._replace(q_sequence=prefix_end + columns - start, block_mask=jnp.minimum(info.block_mask, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined(options: tuple[Any, ...], query: Array, key: Array, value: Array, *parts: tuple[Any, ...]) -> Array:
    """Computes one softmax over the keys of several parts.

        mixed = sum_i exp(l_i - l) mixed_i        l = log sum_i exp l_i

    where l_i is the log of the sum of the exponentials of part i's scores. A query without keys in a part has the least
    l_i there, and so the weight 0.

    Args:
      options: of the kernel of each part.
      query: q, scaled.
      key: k.
      value: v.
      *parts: the masks of each part's kernel, in the forward pass, for the gradient of the queries, and for those of
        keys and values; and the numbers of queries and keys. A query sees the keys with its number.
    """
    return _joined_forward(options, query, key, value, *parts)[0]


def _joined_forward(options: tuple[Any, ...], *arrays: Any) -> tuple[Array, tuple[Any, ...]]:
    query, key, value, *parts = arrays
    found = [
        SplashAttentionKernel(*infos, **dict(one))(query, key, value, segment_ids=ids)
        for one, (*infos, ids) in zip(options, parts, strict=True)
    ]
    total = functools.reduce(jnp.logaddexp, [logs for _, (logs,) in found])
    weighted = [jnp.exp(logs - total)[..., None] * mixed for mixed, (logs,) in found]
    mixed = functools.reduce(jnp.add, weighted).astype(query.dtype)
    mixed, total = (checkpoint_name(x, remat.ATTENTION) for x in (mixed, total))
    return mixed, (query, key, value, parts, mixed, total)


def _joined_backward(options: tuple[Any, ...], saved: tuple[Any, ...], gradient: Array) -> tuple[Any, ...]:
    # The gradient of attention to one part is that of the kernel, with the sums and the result of all parts.
    query, key, value, parts, mixed, total = saved
    gradients = []
    for one, (_, dq, dkv, ids) in zip(options, parts, strict=True):
        residuals = query, key, value, ids, None, mixed, total, dq, dkv
        gradients.append(splash._splash_attention_bwd(**dict(one), res=residuals, do=gradient)[3:6])
    return (*(sum(x) for x in zip(*gradients, strict=True)), *[None] * len(parts))


_joined.defvjp(_joined_forward, _joined_backward)
