"""One layer of the decoder: attention and a feed-forward network, each behind a layer norm."""

from __future__ import annotations

from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from instructjax.models import matmul
from instructjax.models.attention import Visible, attention
from instructjax.models.cache import Slots, append
from instructjax.models.config import TransformerConfig
from instructjax.models.partitioning import constrain, mesh_of_context
from instructjax.typing import Array, Index

Hidden: TypeAlias = Float[Array, "B T d"]  # the residual stream
Carry: TypeAlias = tuple[Hidden, Slots | None, Slots | None]  # with the keys and values of a cache

TRANSPOSED = "transposed"  # the name of a kernel [features, d] in decoding; see `LanguageModel.decoding_params`
DENSE = "dense"  # the checkpoint name of the outputs of dense layers, for the remat policy that saves them


class Dense(nn.Module):
    """Computes x W + b over the last axis.

    Attributes:
      axis: the name of the axis of features, by which the result is sharded on a mesh; see `partitioning.RULES`.
      scale: standard deviation of the initial kernel, in units of `config.init_std`; the bias starts at 0.
    """

    config: TransformerConfig
    features: int
    axis: str | None = None
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T width"]) -> Float[Array, "B T features"]:
        config, width = self.config, x.shape[-1]
        kernel: Array
        if self.has_variable("params", TRANSPOSED):
            spec, kernel = "td,fd->tf", self.get_variable("params", TRANSPOSED)
        else:
            init = nn.initializers.normal(config.init_std * self.scale)
            spec, kernel = "td,df->tf", self.param("kernel", init, (width, self.features), config.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), config.param_dtype)
        flat = x
        if mesh_of_context() is None:
            # One row of tokens: on a CPU, XLA's gradient of a product of two matrices is faster than that of [B, T, d]
            # with a matrix. On a mesh, rows and positions are sharded over different axes, so they are kept apart.
            flat = x.reshape(-1, width)
        else:
            spec = spec.replace("t", "bt")
        y = matmul.einsum(spec, flat, kernel, config.resolved_matmul_dtype, config.dtype)
        # Broadcast before it is rounded, so that the bias's gradient is summed in the bias's dtype, not in bfloat16.
        y += jnp.broadcast_to(bias, y.shape).astype(config.dtype)
        y = checkpoint_name(y, DENSE).reshape(*x.shape[:-1], self.features)
        return y if self.axis is None else constrain(y, "batch", None, self.axis)


class SelfAttention(nn.Module):
    """Multi-head attention of one layer."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        keys: Slots | None,
        values: Slots | None,
        layer: Index,
        start: Index,
        visible: Visible,
    ) -> Carry:
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.d_head)

        def project(name: str) -> Float[Array, "B H T D"]:
            flat = Dense(config, config.num_heads * config.d_head, "heads", name=name)(x)
            return constrain(flat.reshape(heads).swapaxes(1, 2), "batch", "heads", None, None)

        query, key, value = project("query"), project("key"), project("value")
        if keys is not None and values is not None:
            keys, key = append(keys, key, layer, start)
            values, value = append(values, value, layer, start)
        mixed = (
            attention(query, key, value, visible, layer, config.resolved_matmul_dtype)
            .swapaxes(1, 2)
            .reshape(*x.shape[:2], -1)
        )
        mixed = constrain(mixed, "batch", None, "heads")
        return Dense(config, config.d_model, scale=_residual_scale(config), name="out")(mixed), keys, values


class FeedForward(nn.Module):
    """Two dense layers with GELU (the tanh form of GPT-2) between them."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        config = self.config
        hidden = nn.gelu(Dense(config, config.d_ff, "hidden", name="in")(x), approximate=True)
        return Dense(config, config.d_model, scale=_residual_scale(config), name="out")(hidden)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

    The keys and values of the carry are the cache of all layers, that of this layer, or
    None. The cache of all layers is carried, not scanned over, so that a decoding loop
    updates it in place instead of copying it.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, carry: Carry, layer: Index, start: Index, visible: Visible, deterministic: bool
    ) -> tuple[Carry, None]:
        x, keys, values = carry
        dropout = nn.Dropout(self.config.dropout, deterministic=deterministic)
        normed = self._normed("attention_norm", x)
        update, keys, values = SelfAttention(self.config, name="attention")(normed, keys, values, layer, start, visible)
        x = between_blocks(self.config, x + dropout(update))
        normed = self._normed("feed_forward_norm", x)
        x = x + dropout(FeedForward(self.config, name="feed_forward")(normed))
        return (between_blocks(self.config, x), keys, values), None

    def _normed(self, name: str, x: Hidden) -> Hidden:
        # Gathered along the sequence once, not once for each dense layer that reads it.
        return constrain(layer_norm(self.config, name)(x), "batch", None, None)


def between_blocks(config: TransformerConfig, x: Hidden) -> Hidden:
    """Shards the residual stream by rows and by position where it is saved for the backward pass."""
    return constrain(x, "batch", "length" if config.shard_length else None, None)


def layer_norm(config: TransformerConfig, name: str | None) -> nn.LayerNorm:
    """Builds a layer norm with GPT-2's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, dtype=config.dtype, param_dtype=config.param_dtype, name=name)


def _residual_scale(config: TransformerConfig) -> float:
    # Layers that add to the residual stream start with smaller weights, so that its variance does not grow with
    # depth (Radford et al. 2019, section 2.3).
    return (2 * config.num_layers) ** -0.5
