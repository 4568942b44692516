"""The decoder of GPT-3, with a head that predicts tokens or a head that gives one scalar.

Pre-norm blocks of GPT-2 with learned positions (Brown et al. 2020, section 2.1).
The layers are one scanned block, so that every parameter of a block is stacked
[L, ...]. A model takes its key-value cache as an argument and returns it.

Letters in shapes: B rows, T tokens given, L layers, d width of the residual stream, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from instructjax.errors import CheckpointError
from instructjax.models import matmul
from instructjax.models.attention import Visible, attention_mask, band_mask, branch_mask
from instructjax.models.block import DENSE, TRANSPOSED, Block, between_blocks, layer_norm
from instructjax.models.cache import Cache
from instructjax.models.config import TransformerConfig

Params = Any  # a tree of arrays


class Trunk(nn.Module):
    """Everything below the head: embeddings, blocks, final norm."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        init = nn.initializers.normal(config.init_std)
        shape = (config.vocab_size, config.d_model)
        self.token_embedding = self.param("token_embedding", init, shape, config.param_dtype)
        shape = (config.max_length, config.d_model)
        self.position_embedding = self.param("position_embedding", init, shape, config.param_dtype)
        self.dropout = nn.Dropout(config.dropout)
        policies = jax.checkpoint_policies
        policy = policies.nothing_saveable if config.remat else policies.save_only_these_names(DENSE)
        # A scan keeps XLA from merging the two forward passes; unrolled layers need the barrier.
        # Argument 5 of the block is `deterministic`.
        self.blocks = nn.scan(
            nn.remat(Block, prevent_cse=config.unroll > 1, static_argnums=(5,), policy=policy),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=config.unroll,
        )(config)
        self.final_norm = layer_norm(config, None)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        cache: Cache | None = None,
        *,
        branches: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [B, T, d] after the final norm, and the cache with the tokens appended."""
        config = self.config
        if cache is not None and (branches is not None or not deterministic):
            raise ValueError("expected a cache alone, found branches or dropout with it")
        x = self._embed(tokens, positions)
        x = between_blocks(config, self.dropout(x, deterministic=deterministic))
        if cache is None:
            start, keys, values = jnp.zeros((), jnp.int32), None, None
            key_segments, key_positions = segments, positions
        else:
            start, keys, values = cache.length, cache.keys, cache.values
            key_segments = jax.lax.dynamic_update_slice(cache.segments, segments.astype(jnp.int32), (0, start))
            key_positions = jax.lax.dynamic_update_slice(cache.positions, positions.astype(jnp.int32), (0, start))
        # In a row that is whole, columns tell what comes before; in a cache, positions.
        columns = jnp.arange(tokens.shape[1])[None]
        order = (columns, columns) if cache is None else (positions, key_positions)
        mask = attention_mask(*order, segments, key_segments)
        if branches is not None:
            mask &= branch_mask(branches, branches)
        banded = None
        if config.local_window is not None:
            banded = mask & band_mask(positions, key_positions, config.local_window)
        alone = segments if cache is None and branches is None else None
        visible = Visible(mask, banded, alone, config.local_window)
        if isinstance(keys, tuple):
            x, keys, values = self._each_block(x, keys, values, start, visible)
        else:
            layers = jnp.arange(config.num_layers)
            (x, keys, values), _ = self.blocks((x, keys, values), layers, start, visible, deterministic)
        if cache is not None:
            cache = Cache(keys, values, key_segments, key_positions, start + tokens.shape[1])
        return self.final_norm(x), cache

    def _each_block(self, x, keys, values, start, visible):
        """The blocks one after the other, each with a cache of its own."""
        stacked, carries = self.blocks.variables["params"], []
        for layer, cached in enumerate(zip(keys, values, strict=True)):
            params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
            block = Block(self.config, parent=None)
            (x, *cached), _ = block.apply({"params": params}, (x, *cached), layer, start, visible, True)
            carries.append(cached)
        return x, *zip(*carries, strict=True)

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        dtype = self.config.dtype
        token = jnp.take(self.token_embedding, tokens, axis=0).astype(dtype)
        return token + jnp.take(self.position_embedding, positions, axis=0).astype(dtype)


class LanguageModel(nn.Module):
    """Predicts the next token. Parameters: {"trunk"}, and {"unembedding"} if it is not the token embedding."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        self.trunk = Trunk(config)
        if not config.tied:
            init = nn.initializers.normal(config.init_std)
            shape = (config.vocab_size, config.d_model)
            self.unembedding = self.param("unembedding", init, shape, config.param_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        cache: Cache | None = None,
        *,
        branches: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits of the token after each token.

        Args:
          tokens: [B, T] int32.
          segments: [B, T] int32; a token sees the tokens before it in its segment. The
            results on padding (0) mean nothing, but are finite.
          positions: [B, T] int32, below `max_length`.
          cache: None, or what came before: the tokens are appended at `cache.length`,
            and there must be room for them (a cache does not notice that it is full).
          branches: None, or [B, T] int32 where several continuations of one prefix share a
            segment: 0 on the prefix, another number on each of them. A token sees the prefix
            and its own branch. Positions of each branch go on where the prefix's end. Not
            with a cache.
          deterministic: False applies dropout, with the random key "dropout".

        Returns:
          Logits [B, T, V], float32 at least, and the cache with the T tokens appended (or None).
        """
        hidden, cache = self.hidden(tokens, segments, positions, cache, branches=branches, deterministic=deterministic)
        return self.unembed(hidden), cache

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        cache: Cache | None = None,
        *,
        branches: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Like `__call__`, but hidden states [B, T, d] that `unembed` turns into logits.

        A caller that needs the logits of a few positions selects them between the two.
        """
        return self.trunk(tokens, segments, positions, cache, branches=branches, deterministic=deterministic)

    def decoding_params(self, params: Params) -> Params:
        """The parameters with the kernels rounded once, and not by each step that reads them; changes no result.

        What is rounded is a copy, and is transposed with it, as products of few tokens are then faster on a CPU.
        """
        matmul_dtype, flat = self.config.resolved_matmul_dtype, flax.traverse_util.flatten_dict(params)
        for path, leaf in list(flat.items()):
            if path[-1] == "kernel" and leaf.dtype != matmul_dtype:
                flat[(*path[:-1], TRANSPOSED)] = flat.pop(path).astype(matmul_dtype).swapaxes(-1, -2)
        return flax.traverse_util.unflatten_dict(flat)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], float32 at least, of hidden states [..., d]."""
        matrix = self.trunk.token_embedding if self.config.tied else self.unembedding
        flat = hidden.reshape(-1, self.config.d_model)
        logits = matmul.einsum("td,vd->tv", flat, matrix, self.config.resolved_matmul_dtype, _at_least_float32(hidden))
        return logits.reshape(*hidden.shape[:-1], -1)


class ScalarModel(nn.Module):
    """One scalar for each token: a reward or a value (section 3.5). Parameters: {"trunk", "head"}."""

    config: TransformerConfig

    def setup(self):
        self.trunk = Trunk(self.config)
        self.head = ScalarHead(self.config)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        *,
        branches: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Scalars [B, T], float32 at least, of the text up to each token; for the arguments see `LanguageModel`."""
        hidden, _ = self.trunk(tokens, segments, positions, branches=branches, deterministic=deterministic)
        return self.head(hidden)


class ScalarHead(nn.Module):
    """A projection to one scalar, in float32 at least.

    The kernel starts with variance 1 / (d_model + 1) (Stiennon et al. 2020, appendix
    B.1). The bias starts at 0; after the reward model is trained it is set so that
    demonstrations score 0 on average (section 3.5).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width, dtype = self.config.d_model, self.config.param_dtype
        kernel = self.param("kernel", nn.initializers.normal((width + 1) ** -0.5), (width,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (), dtype)
        hidden, kernel, bias = (jnp.asarray(a, _at_least_float32(hidden)) for a in (hidden, kernel, bias))
        return jnp.einsum("btd,d->bt", hidden, kernel) + bias


def graft_trunk(target_params: Params, source_params: Params) -> Params:
    """The parameters of one model with the trunk of another: SFT to reward model to value network.

    Args:
      target_params: a tree with "trunk", as `init(...)["params"]` gives it.
      source_params: another, whose trunk has the same structure, shapes and dtypes.

    Returns:
      `target_params` with a copy of the trunk of `source_params`. It is a copy so that
      a step that donates the one model's buffers does not delete the other's.

    Raises:
      CheckpointError: the trunks differ; names the parameters on both sides.
    """
    target, source = (_shapes(params["trunk"]) for params in (target_params, source_params))
    if differing := sorted(name for name in target.keys() | source.keys() if target.get(name) != source.get(name)):
        expected = ", ".join(f"{name} {target.get(name, 'absent')}" for name in differing)
        found = ", ".join(f"{name} {source.get(name, 'absent')}" for name in differing)
        raise CheckpointError(f"trunk: expected {expected}; found {found}")
    return {**target_params, "trunk": jax.tree.map(jnp.copy, source_params["trunk"])}


def _shapes(tree: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _at_least_float32(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
