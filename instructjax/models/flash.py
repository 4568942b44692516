"""Splash attention: a fused TPU kernel that never holds the attention weights and skips blocks that no query sees."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
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
      cap: None, or c where scores s become c tanh(s / c).
      interpret: emulates the kernel without a TPU, for tests.
    """
    length = query.shape[2]

    def kernel(mask: masks.Mask, heads: int) -> Callable[..., Array]:
        size = next(size for size in (MAX_BLOCK, MAX_BLOCK // 2, BLOCK) if length % size == 0)
        sizes = splash.BlockSizes(
            block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size, block_kv_dq=size
        )
        one_row = splash.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=cap,
            residual_checkpoint_name=remat.ATTENTION,
            interpret=interpret,
        )
        return jax.vmap(lambda q, k, v, s: one_row(q, k, v, segment_ids=splash.SegmentIds(s, s)))

    def local(query: Array, key: Array, value: Array, segments: Array, *banded: Array) -> Array:
        arrays = query, key, value, segments
        dense = kernel(masks.CausalMask((length, length)), query.shape[1])
        if not banded or window is None:
            return dense(*arrays)
        near = kernel(masks.LocalMask((length, length), (window - 1, 0), 0), query.shape[1])
        return jax.lax.cond(banded[0], near, dense, *arrays)

    given = () if banded is None else (banded,)
    mesh = partitioning.mesh_of_context()
    if mesh is None:
        return local(query, key, value, segments, *given)
    # By the heads of the keys, so that the query heads that share one stay on its device.
    rows = partitioning.spec(("batch", "heads", None, None), key.shape, mesh)
    whole = jax.sharding.PartitionSpec()
    specs = (rows, rows, rows, jax.sharding.PartitionSpec(rows[0], None), *[whole] * len(given))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
        query, key, value, segments, *given
    )
