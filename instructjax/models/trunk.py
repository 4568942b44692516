"""The decoder below its head: embeddings, blocks and the final norm.

By default these are GPT-3's: pre-norm blocks of GPT-2 with learned positions (Brown et al. 2020, section 2.1).
The layers are one scanned block, so every parameter of a block is stacked: [L, ...].
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Int

from instructjax.models import partitioning, remat
from instructjax.models.attention import Visible, attention_mask, band_mask, branch_mask
from instructjax.models.block import Block, Hidden, between_blocks, norm
from instructjax.models.cache import Cache, Slots, write
from instructjax.models.config import TransformerConfig
from instructjax.models.rotary import Rotations, rotations
from instructjax.typing import AnyArray, Array, Index


class Trunk(nn.Module):
    """Everything below the head."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.init_std)
        shape = (config.vocab_size, config.d_model)
        self.token_embedding = self.param("token_embedding", init, shape, config.param_dtype)
        if config.positions == "learned":
            shape = (config.max_length, config.d_model)
            self.position_embedding = self.param("position_embedding", init, shape, config.param_dtype)
        self.dropout = nn.Dropout(config.dropout)
        # A scan keeps XLA from merging the two forward passes of remat; unrolled layers need the barrier.
        # Argument 6 of the block is `deterministic`.
        self.blocks = nn.scan(
            nn.remat(Block, prevent_cse=config.unroll > 1, static_argnums=(6,), policy=remat.policy(config.remat)),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * 4),
            length=config.num_layers,
            unroll=config.unroll,
        )(config)
        self.final_norm = norm(config, None)

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        cache: Cache | None = None,
        *,
        branches: Int[AnyArray, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Hidden, Cache | None]:
        """Computes hidden states after the final norm, and the cache with the tokens appended."""
        config = self.config
        tokens, segments, positions = (jnp.asarray(x) for x in (tokens, segments, positions))
        if cache is not None and (branches is not None or not deterministic):
            raise ValueError("expected a cache alone, found branches or dropout with it")
        x = self._embed(tokens, positions)
        x = between_blocks(config, self.dropout(x, deterministic=deterministic))
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        visible = own = self._own_visible(segments, positions, branches)
        if cache is not None:
            key_segments = write(cache.segments, segments.astype(jnp.int32), 0, start)
            key_positions = write(cache.positions, positions.astype(jnp.int32), 0, start)
            mask = partitioning.constrain_rows(attention_mask(positions, key_positions, segments, key_segments))
            visible = self._visible(mask, positions, key_positions)
            visible = dataclasses.replace(visible, own=own if cache.empty else None)
        rotated = rotations(config, positions)
        keys: Slots | tuple[Slots, ...] | None = None if cache is None else cache.keys
        values: Slots | tuple[Slots, ...] | None = None if cache is None else cache.values
        if isinstance(keys, tuple):
            assert isinstance(values, tuple)
            x, keys, values = self._each_block(x, keys, values, start, visible, rotated)
        else:
            assert not isinstance(values, tuple)
            layers = jnp.arange(config.num_layers)
            (x, keys, values), _ = self.blocks((x, keys, values), layers, start, visible, rotated, deterministic)
        if keys is not None and values is not None:
            cache = Cache(keys, values, key_segments, key_positions, start + tokens.shape[1])
        return self.final_norm(x), cache

    def _own_visible(self, segments: Array, positions: Array, branches: AnyArray | None) -> Visible:
        """Returns what tokens see of each other. Their order is given by columns; with a cache, it is by positions."""
        columns = jnp.arange(segments.shape[1])[None]
        mask = partitioning.constrain_rows(attention_mask(columns, columns, segments, segments))
        if branches is not None:
            branches = jnp.asarray(branches)
            mask = partitioning.constrain_rows(mask & branch_mask(branches, branches))
        return dataclasses.replace(self._visible(mask, positions, positions), segments=segments, branches=branches)

    def _visible(self, mask: Array, positions: Array, key_positions: Array) -> Visible:
        config, banded = self.config, None
        if config.local_window is not None:
            banded = partitioning.constrain_rows(mask & band_mask(positions, key_positions, config.local_window))
        return Visible(mask, banded, window=config.local_window, pattern=config.window_pattern)

    def _each_block(
        self,
        x: Hidden,
        keys: tuple[Slots, ...],
        values: tuple[Slots, ...],
        start: Index,
        visible: Visible,
        rotated: Rotations | None,
    ) -> tuple[Hidden, tuple[Slots, ...], tuple[Slots, ...]]:
        """Computes the blocks one after the other, each with its own cache."""
        stacked = self.blocks.variables["params"]
        new_keys, new_values = [], []
        for layer, cached in enumerate(zip(keys, values, strict=True)):
            params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
            block = Block(self.config, parent=None)
            (x, *new), _ = block.apply({"params": params}, (x, *cached), layer, start, visible, rotated, True)
            new_keys.append(new[0])
            new_values.append(new[1])
        return x, tuple(new_keys), tuple(new_values)

    def _embed(self, tokens: Array, positions: Array) -> Hidden:
        dtype = self.config.dtype
        token = jnp.take(self.token_embedding, tokens, axis=0).astype(dtype)
        if self.config.scaled_embedding:
            token *= jnp.asarray(self.config.d_model**0.5, dtype)
        if self.config.positions == "rotary":
            return token
        return token + jnp.take(self.position_embedding, positions, axis=0).astype(dtype)
