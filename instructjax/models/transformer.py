"""The decoder of GPT-3, with a head that predicts tokens or a head that outputs one scalar.

Pre-norm blocks of GPT-2 with learned positions (Brown et al. 2020, section 2.1).
The layers are one scanned block, so every parameter of a block is stacked: [L, ...].
A model takes its key-value cache as an argument and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from instructjax.errors import CheckpointError
from instructjax.models import matmul, partitioning
from instructjax.models.attention import Visible, attention_mask, band_mask, branch_mask
from instructjax.models.block import DENSE, TRANSPOSED, Block, Hidden, between_blocks, layer_norm
from instructjax.models.cache import Cache, Slots
from instructjax.models.config import TransformerConfig
from instructjax.typing import AnyArray, Array, Index, Params

ROUNDED = "rounded"  # the name of a rounded copy of the unembedding; see `LanguageModel.unembedding_params`


class Trunk(nn.Module):
    """Everything below the head: embeddings, blocks and final norm."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.init_std)
        shape = (config.vocab_size, config.d_model)
        self.token_embedding = self.param("token_embedding", init, shape, config.param_dtype)
        shape = (config.max_length, config.d_model)
        self.position_embedding = self.param("position_embedding", init, shape, config.param_dtype)
        self.dropout = nn.Dropout(config.dropout)
        policies = jax.checkpoint_policies
        policy = policies.nothing_saveable if config.remat else policies.save_only_these_names(DENSE)
        # A scan keeps XLA from merging the two forward passes of remat; unrolled layers need the barrier.
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
        if cache is None:
            start = jnp.zeros((), jnp.int32)
            key_segments, key_positions = segments, positions
        else:
            start, update = cache.length, jax.lax.dynamic_update_slice_in_dim
            key_segments = update(cache.segments, segments.astype(jnp.int32), start, axis=1)
            key_positions = update(cache.positions, positions.astype(jnp.int32), start, axis=1)
        # Without a cache, the order of tokens is given by columns; with a cache, by positions.
        columns = jnp.arange(tokens.shape[1])[None]
        order = (columns, columns) if cache is None else (positions, key_positions)
        mask = partitioning.constrain_rows(attention_mask(*order, segments, key_segments))
        if branches is not None:
            branches = jnp.asarray(branches)
            mask = partitioning.constrain_rows(mask & branch_mask(branches, branches))
        banded = None
        if config.local_window is not None:
            banded = partitioning.constrain_rows(mask & band_mask(positions, key_positions, config.local_window))
        alone = segments if cache is None and branches is None else None
        visible = Visible(mask, banded, alone, config.local_window)
        keys: Slots | tuple[Slots, ...] | None = None if cache is None else cache.keys
        values: Slots | tuple[Slots, ...] | None = None if cache is None else cache.values
        if isinstance(keys, tuple):
            assert isinstance(values, tuple)
            x, keys, values = self._each_block(x, keys, values, start, visible)
        else:
            assert not isinstance(values, tuple)
            layers = jnp.arange(config.num_layers)
            (x, keys, values), _ = self.blocks((x, keys, values), layers, start, visible, deterministic)
        if keys is not None and values is not None:
            cache = Cache(keys, values, key_segments, key_positions, start + tokens.shape[1])
        return self.final_norm(x), cache

    def _each_block(
        self, x: Hidden, keys: tuple[Slots, ...], values: tuple[Slots, ...], start: Index, visible: Visible
    ) -> tuple[Hidden, tuple[Slots, ...], tuple[Slots, ...]]:
        """Computes the blocks one after the other, each with its own cache."""
        stacked = self.blocks.variables["params"]
        new_keys, new_values = [], []
        for layer, cached in enumerate(zip(keys, values, strict=True)):
            params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
            block = Block(self.config, parent=None)
            (x, *new), _ = block.apply({"params": params}, (x, *cached), layer, start, visible, True)
            new_keys.append(new[0])
            new_values.append(new[1])
        return x, tuple(new_keys), tuple(new_values)

    def _embed(self, tokens: Array, positions: Array) -> Hidden:
        dtype = self.config.dtype
        token = jnp.take(self.token_embedding, tokens, axis=0).astype(dtype)
        return token + jnp.take(self.position_embedding, positions, axis=0).astype(dtype)


class _Model(nn.Module):
    """The base class of both models: tokens in, arrays out."""

    if TYPE_CHECKING:  # Flax's own annotation of `apply` is for calls with `mutable`

        def apply(self, variables: Mapping[str, Params], *args: Any, **kwargs: Any) -> Any: ...


class LanguageModel(_Model):
    """Predicts the next token. Parameters: {"trunk"}, and {"unembedding"} if it is not the token embedding."""

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        self.trunk = Trunk(config)
        if not config.tied:
            init = nn.initializers.normal(config.init_std)
            shape = (config.vocab_size, config.d_model)
            self.unembedding = self.param("unembedding", init, shape, config.param_dtype)

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        cache: Cache | None = None,
        *,
        branches: Int[AnyArray, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """Computes the logits of the token after each token.

        Args:
          tokens: token ids.
          segments: a token sees the tokens before it in its segment. Results on padding
            (0) are meaningless but finite.
          positions: below `max_length`.
          cache: None, or the cache of the preceding tokens. The new tokens are appended at
            `cache.length`; there must be room for them, which is not checked.
          branches: needed if several continuations of a prefix share a segment: 0 on the
            prefix, a different number on each continuation. A token sees the prefix and its
            own branch. Positions of each branch continue those of the prefix. Not supported
            with a cache.
          deterministic: False applies dropout, with the random key "dropout".

        Returns:
          Logits, in at least float32, and the cache with the T tokens appended (or None).
        """
        hidden, cache = self.hidden(tokens, segments, positions, cache, branches=branches, deterministic=deterministic)
        return self.unembed(hidden), cache

    def hidden(
        self,
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        cache: Cache | None = None,
        *,
        branches: Int[AnyArray, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Hidden, Cache | None]:
        """Computes hidden states, which `unembed` turns into logits. Takes the arguments of `__call__`.

        A caller that needs the logits of only a few positions selects them in between.
        """
        return self.trunk(tokens, segments, positions, cache, branches=branches, deterministic=deterministic)

    def decoding_params(self, params: Params) -> Params:
        """Rounds and gathers the weights once, instead of in each step that reads them; changes no result.

        Rounded kernels are also transposed, which makes products of few tokens faster on a CPU. On a mesh, all weights
        are gathered over "fsdp" after they are rounded, and stay sharded over "tensor".
        """
        decoding: dict[tuple[str, ...], Array] = {}
        for path, leaf in flax.traverse_util.flatten_dict(params).items():
            name, dtype = path[-1], self._decoding_dtype(path[-1], leaf)
            axes = partitioning.weight_axes("/".join(path), leaf.ndim)
            if name == "kernel" and leaf.dtype != dtype:
                # Rounded before it is moved, so that no float32 copy of another layout is made.
                rounded = partitioning.constrain(leaf.astype(dtype), *axes).swapaxes(-1, -2)
                name, leaf, axes = TRANSPOSED, rounded, (*axes[:-2], axes[-1], axes[-2])
            decoding[(*path[:-1], name)] = partitioning.gather_width(leaf.astype(dtype), axes)
        return self.unembedding_params(flax.traverse_util.unflatten_dict(decoding))

    def unembedding_params(self, params: Params) -> Params:
        """Rounds and gathers the unembedding once, instead of in each call of `unembed`; changes no result.

        The rounded copy has no gradient of its own: that of `unembed` goes to the unembedding.
        """
        matrix = params["trunk"]["token_embedding"] if self.config.tied else params["unembedding"]
        dtype = jnp.dtype(self.config.resolved_matmul_dtype)
        if matrix.dtype == dtype and partitioning.mesh_of_context() is None:
            return params
        rounded = jax.lax.stop_gradient(matrix).astype(dtype)
        return {**params, ROUNDED: partitioning.gather_width(rounded, partitioning.WEIGHTS["unembedding"])}

    def _decoding_dtype(self, name: str, leaf: Array) -> DTypeLike:
        """Returns the dtype to which all readers of a weight round it, or its own if they differ."""
        config = self.config
        if name in ("kernel", "unembedding"):
            return config.resolved_matmul_dtype
        embedding = name == "token_embedding" and (not config.tied or config.resolved_matmul_dtype == config.dtype)
        return config.dtype if embedding or name == "position_embedding" else leaf.dtype

    def unembed(self, hidden: Float[Array, "B *T d"]) -> Float[Array, "B *T V"]:
        """Computes logits of hidden states, in at least float32."""
        matrix = self.trunk.token_embedding if self.config.tied else self.unembedding
        flat, spec = hidden.reshape(-1, self.config.d_model), "td,vd->tv"
        axes = partitioning.axes_of_logits(self.config.vocab_size, hidden.ndim)
        if partitioning.mesh_of_context() is not None and hidden.ndim == 3:  # see `block.Dense`
            flat, spec = partitioning.constrain(hidden, *axes[:-1], None), "btd,vd->btv"
        dtype = _at_least_float32(hidden)
        if self.has_variable("params", ROUNDED):
            logits = matmul.einsum_of_rounded(spec, flat, self.get_variable("params", ROUNDED), matrix, dtype)
        else:
            logits = matmul.einsum(spec, flat, matrix, self.config.resolved_matmul_dtype, dtype)
        return partitioning.constrain(logits.reshape(*hidden.shape[:-1], -1), *axes)


class ScalarModel(_Model):
    """Outputs one scalar per token: a reward or a value (section 3.5). Parameters: {"trunk", "head"}."""

    config: TransformerConfig

    def setup(self) -> None:
        self.trunk = Trunk(self.config)
        self.head = ScalarHead(self.config)

    def __call__(
        self,
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        *,
        branches: Int[AnyArray, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T"]:
        """Computes scalars for the text up to each token, in at least float32. Takes `LanguageModel`'s arguments."""
        hidden, _ = self.trunk(tokens, segments, positions, branches=branches, deterministic=deterministic)
        return self.head(hidden)


class ScalarHead(nn.Module):
    """A projection to one scalar, in at least float32.

    The kernel starts with variance 1 / (d_model + 1) (Stiennon et al. 2020, appendix
    B.1). The bias starts at 0. After the reward model is trained, the bias is set so
    that demonstrations score 0 on average (section 3.5).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: Hidden) -> Float[Array, "B T"]:
        width, dtype = self.config.d_model, self.config.param_dtype
        kernel = self.param("kernel", nn.initializers.normal((width + 1) ** -0.5), (width,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (), dtype)
        hidden, kernel, bias = (jnp.asarray(a, _at_least_float32(hidden)) for a in (hidden, kernel, bias))
        return jnp.einsum("btd,d->bt", hidden, kernel) + bias


def graft_trunk(target_params: Params, source_params: Params) -> Params:
    """Replaces the trunk of one model by that of another, as from SFT to reward model to value network.

    Args:
      target_params: a tree with "trunk", such as `init(...)["params"]`.
      source_params: a tree whose trunk has the same structure, shapes and dtypes.

    Returns:
      `target_params` with a copy of the trunk of `source_params`. Because it is a copy, a
      step that donates the buffers of one model does not delete those of the other.

    Raises:
      CheckpointError: the trunks differ; the message names the parameters on both sides.
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


def _at_least_float32(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
