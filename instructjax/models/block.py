"""One layer of the decoder: attention and a feed-forward network, with norms. It reads its choices from the config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float

from instructjax.models import matmul, remat
from instructjax.models.attention import Visible, attention, fused_kernel, is_local
from instructjax.models.cache import Slots, append
from instructjax.models.config import TransformerConfig
from instructjax.models.lora import LORA_A, LORA_B
from instructjax.models.partitioning import constrain, devices_of, mesh_of_context
from instructjax.models.quantization import Quantized
from instructjax.models.rotary import Rotations, rotate
from instructjax.typing import Array, Index

Hidden: TypeAlias = Float[Array, "B T d"]  # the residual stream
Carry: TypeAlias = tuple[Hidden, Slots | None, Slots | None]  # with the keys and values of a cache

# The name of a kernel [features, d] in decoding, which may be `Quantized`; see `LanguageModel.decoding_params`.
TRANSPOSED = "transposed"

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}


class Dense(nn.Module):
    """Computes x W + b over the last axis, or x W; with adapters, also (alpha / r) (x A) B, see lora.py.

    Attributes:
      axis: the name of the axis of features, by which the result is sharded on a mesh; see `partitioning.RULES`.
      scale: standard deviation of the initial kernel, in units of `config.init_std`; the bias starts at 0.
      has_bias: whether there is a b.
      deterministic: False applies dropout to the input of adapters.
    """

    config: TransformerConfig
    features: int
    axis: str | None = None
    scale: float = 1.0
    has_bias: bool = True
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T width"]) -> Float[Array, "B T features"]:
        config, width = self.config, x.shape[-1]
        kernel: Array | Quantized
        if self.has_variable("params", TRANSPOSED):
            spec, kernel = "td,fd->tf", self.get_variable("params", TRANSPOSED)
        else:
            init = nn.initializers.normal(config.init_std * self.scale)
            spec, kernel = "td,df->tf", self.param("kernel", init, (width, self.features), config.param_dtype)
        flat = x
        if mesh_of_context() is None:
            # One row of tokens: on a CPU, XLA's gradient of a product of two matrices is faster than that of [B, T, d]
            # with a matrix. On a mesh, rows and positions are sharded over different axes, so they are kept apart.
            flat = x.reshape(-1, width)
        else:
            spec = spec.replace("t", "bt")
        # Terms are added before the sum is rounded, once. The bias's gradient is then summed in at least float32.
        dtype = jnp.promote_types(config.dtype, jnp.float32)
        if isinstance(kernel, Quantized):
            y = matmul.einsum_of_quantized(spec, flat, kernel, config.quantized_matmul_dtype, dtype)
        else:
            y = matmul.einsum(spec, flat, kernel, config.resolved_matmul_dtype, dtype)
        if self.has_variable("params", LORA_A):
            y += self._low_rank(flat, dtype)
        if self.has_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), config.param_dtype).astype(dtype)
        y = checkpoint_name(y.astype(config.dtype), remat.DENSE).reshape(*x.shape[:-1], self.features)
        return y if self.axis is None else constrain(y, "batch", None, self.axis)

    def _low_rank(self, x: Float[Array, "*shape width"], dtype: DTypeLike) -> Float[Array, "*shape features"]:
        """Computes (alpha / r) (x A) B in `dtype`, without the product of A and B."""
        config = self.config
        x = nn.Dropout(config.lora_dropout, deterministic=self.deterministic)(x)
        a: Array = self.get_variable("params", LORA_A)
        b: Array = self.get_variable("params", LORA_B)
        rows, matmul_dtype, factor = "bt"[-x.ndim + 1 :], config.resolved_matmul_dtype, config.lora_alpha / a.shape[-1]
        low = matmul.einsum(f"{rows}d,dr->{rows}r", x, a, matmul_dtype, config.dtype) * factor
        return matmul.einsum(f"{rows}r,rf->{rows}f", low, b, matmul_dtype, dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of one layer."""

    config: TransformerConfig
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        keys: Slots | None,
        values: Slots | None,
        layer: Index,
        start: Index,
        visible: Visible,
        rotations: Rotations | None,
    ) -> Carry:
        config = self.config

        def project(name: str, heads: int, normed: str = "none") -> Float[Array, "B heads T D"]:
            has_bias = config.biases != "none"
            features, deterministic = heads * config.d_head, self.deterministic
            flat = Dense(config, features, "heads", has_bias=has_bias, deterministic=deterministic, name=name)(x)
            if normed == "width":
                flat = norm(config, f"{name}_norm")(flat)
            split = flat.reshape(*x.shape[:2], heads, config.d_head)
            if normed == "head":
                split = norm(config, f"{name}_norm")(split)
            return constrain(split.swapaxes(1, 2), "batch", "heads", None, None)

        query = project("query", config.num_heads, config.query_key_norm)
        key = project("key", config.kv_heads, config.query_key_norm)
        value = project("value", config.kv_heads)
        if rotations is not None:
            rotation = rotations.dense
            if rotations.local is not None:
                here = is_local(config.window_pattern, layer)
                rotation = jax.tree.map(functools.partial(jnp.where, here), rotations.local, rotation)
            query, key = rotate(query, rotation), rotate(key, rotation)
        if keys is not None and values is not None:
            keys, cached_key = append(keys, key, layer, start)
            values, cached_value = append(values, value, layer, start)
            if visible.own is not None and fused_kernel(query, key, visible.own, config.score_cap):
                visible = visible.own
            else:
                key, value = cached_key, cached_value
        mixed = (
            attention(
                query,
                key,
                value,
                visible,
                layer,
                config.resolved_matmul_dtype,
                scale=(config.query_scalar or config.d_head) ** -0.5,
                cap=config.score_cap,
            )
            .swapaxes(1, 2)
            .reshape(*x.shape[:2], -1)
        )
        mixed = constrain(mixed, "batch", None, "heads")
        return _dense_out(config, self.deterministic)(mixed), keys, values


class FeedForward(nn.Module):
    """Two dense layers with an activation between them, which a third may gate."""

    config: TransformerConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        config = self.config
        activation = _ACTIVATIONS[config.activation]

        def dense(name: str) -> Float[Array, "B T hidden"]:
            has_bias, deterministic = config.biases == "all", self.deterministic
            return Dense(config, config.d_ff, "hidden", has_bias=has_bias, deterministic=deterministic, name=name)(x)

        hidden = activation(dense("gate")) * dense("in") if config.gated else activation(dense("in"))
        return _dense_out(config, self.deterministic)(hidden)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)), or another placement of its norms.

    The keys and values of the carry are the cache of all layers, that of this layer, or
    None. The cache of all layers is carried, not scanned over, so that a decoding loop
    updates it in place instead of copying it.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: Index,
        start: Index,
        visible: Visible,
        rotations: Rotations | None,
        deterministic: bool,
    ) -> tuple[Carry, None]:
        x, keys, values = carry
        config = self.config
        dropout = nn.Dropout(config.dropout, deterministic=deterministic)
        normed = self._before("attention_norm", x)
        update, keys, values = SelfAttention(config, deterministic, name="attention")(
            normed, keys, values, layer, start, visible, rotations
        )
        y = between_blocks(config, x + dropout(self._after("attention_out_norm", update)))
        normed = self._before("feed_forward_norm", x if config.parallel_residual else y)
        update = FeedForward(config, deterministic, name="feed_forward")(normed)
        y = y + dropout(self._after("feed_forward_out_norm", update))
        return (between_blocks(config, y), keys, values), None

    def _before(self, name: str, x: Hidden) -> Hidden:
        """Prepares the input of a sublayer."""
        if self.config.norm_placement != "post":
            x = norm(self.config, name)(x)
        return gather_length(self.config, x)

    def _after(self, name: str, x: Hidden) -> Hidden:
        """Prepares the output of a sublayer."""
        return x if self.config.norm_placement == "pre" else norm(self.config, name)(x)


def between_blocks(config: TransformerConfig, x: Hidden) -> Hidden:
    """Shards the residual stream by rows and by position where it is saved for the backward pass."""
    return constrain(x, "batch", "length" if config.shard_length else None, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_length(config: TransformerConfig, x: Hidden) -> Hidden:
    """Gathers the input of a sublayer along the sequence, once for all dense layers that read it.

    On a mesh with "tensor" the result is at least float32. The gradient is a sum over the dense layers and over the
    devices of "tensor". If the first sum is rounded only once, XLA for GPUs and TPUs swaps the two and reduces one
    array instead of one for each dense layer. It then scatters that along the sequence, as the conjugate of the gather
    (Korthikanti et al. 2022, section 4.2.2).
    """
    x = constrain(x, "batch", None, None)
    if devices_of("heads") == 1:
        return x
    # Without the barrier, XLA for GPUs widens some of the arrays before it gathers them.
    return jax.lax.optimization_barrier(x).astype(jnp.promote_types(x.dtype, jnp.float32))


def _gather_length_forward(config: TransformerConfig, x: Hidden) -> tuple[Hidden, None]:
    return gather_length(config, x), None


def _gather_length_backward(config: TransformerConfig, _: None, cotangent: Hidden) -> tuple[Hidden]:
    return (between_blocks(config, cotangent.astype(config.dtype)),)


gather_length.defvjp(_gather_length_forward, _gather_length_backward)


class RMSNorm(nn.Module):
    """Divides by the root of the mean square over the last axis (Zhang & Sennrich 2019), in at least float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*shape width"]) -> Float[Array, "*shape width"]:
        config, dtype = self.config, jnp.promote_types(x.dtype, jnp.float32)
        has_offset = config.norm == "rms_unit_offset"
        init = nn.initializers.zeros if has_offset else nn.initializers.ones
        scale = self.param("scale", init, x.shape[-1:], config.param_dtype).astype(dtype)
        wide = x.astype(dtype)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.norm_epsilon)
        return (normed * (1 + scale if has_offset else scale)).astype(config.dtype)


def norm(config: TransformerConfig, name: str | None) -> nn.LayerNorm | RMSNorm:
    """Builds a norm of the kind that the config names."""
    if config.norm == "layer":
        epsilon = config.norm_epsilon
        return nn.LayerNorm(epsilon=epsilon, dtype=config.dtype, param_dtype=config.param_dtype, name=name)
    return RMSNorm(config, name=name)


def _dense_out(config: TransformerConfig, deterministic: bool) -> Dense:
    # Layers that add to the residual stream start with smaller weights, so that its variance does not grow with
    # depth (Radford et al. 2019, section 2.3).
    scale = (2 * config.num_layers) ** -0.5
    has_bias = config.biases == "all"
    return Dense(config, config.d_model, None, scale, has_bias, deterministic, name="out")
