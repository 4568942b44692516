"""The decoder of GPT-3, with a head that predicts tokens or a head that gives one scalar.

Pre-norm blocks of GPT-2 with learned positions (Brown et al. 2020, section 2.1).
The layers are one scanned block, so that every parameter of a block is stacked
[L, ...]. A model takes its key-value cache as an argument and returns it.

Letters in shapes: B rows, T tokens given, S slots of a cache, L layers, H heads,
D width of a head, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from instructjax.errors import CheckpointError, ConfigError
from instructjax.models import products
from instructjax.models.attention import Visible, attention, attention_mask, band_mask, branch_mask
from instructjax.models.partitioning import constrain

Params = Any  # a tree of arrays
DENSE = "dense"  # the name of what dense layers give, for the policy that keeps it
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model and the arithmetic it computes in.

    Attributes:
      vocab_size: V.
      num_layers: L.
      d_model: width of the residual stream.
      num_heads: H.
      d_head: D; H times D may differ from `d_model`.
      d_ff: width of the hidden layer of the feed-forward network, 4 d_model in GPT-3.
      max_length: number of learned positions; a position beyond it gives NaN.
      dropout: rate of residual dropout: on the embeddings and on what each sublayer
        adds to the residual stream (Vaswani et al. 2017, section 5.4).
      local_window: None, or the number of positions that the odd layers see (layers
        count from 0), the even ones seeing all: GPT-3's alternation of dense and
        locally banded attention.
      dtype: of activations and of the cache. Logits, scalars, softmax and the
        statistics of layer norms are float32 always, or float64 where this is; that is
        for comparisons and needs JAX_ENABLE_X64=1.
      factors: the dtype that the factors of matrix products are rounded to; their sums are float32
        at least. "" is `dtype`. "bfloat16" below activations of float32 is what a TPU makes of
        float32 products by itself; on a CPU with matrix units for bfloat16 it is the fastest, as
        everything that is no product is slow in bfloat16 there.
      param_dtype: of the parameters.
      tied: whether logits are products with the token embedding, as in GPT-2 and GPT-3, or with a
        matrix of their own, as some imported models have.
      remat: what the backward pass finds in memory. False: the result of each dense
        layer, so that attention, norms and GELU are computed again. True: the input of
        each block, so that all of it is.
      unroll: how many layers one turn of the scan computes; changes no result.
      cache_by_layer: whether decoding is a program of L blocks with a cache each, and not a scan
        over one cache of all layers; changes no result. It takes longer to compile, and nothing
        copies the keys and values of a layer, as XLA does on a CPU to read them.
      shard_length: whether the residual stream between blocks is cut by position over the mesh
        axis "tensor"; changes no result.
      logits_chunk: of how many tokens a device holds the logits at a time in a loss; changes no
        result. The fewer, the less memory, but the unembedding is read anew for each chunk: some
        hundreds on a CPU and some thousands on an accelerator are enough.
      init_std: standard deviation of every kernel and embedding at the start (Radford et al.
        2018, section 4.1, have 0.02). Narrow models want more: 0.02 is 1 / sqrt(2500).
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    d_head: int
    d_ff: int
    max_length: int
    dropout: float = 0.0
    local_window: int | None = None
    dtype: str = "float32"
    factors: str = ""
    param_dtype: str = "float32"
    tied: bool = True
    remat: bool = False
    unroll: int = 1
    cache_by_layer: bool = True
    shard_length: bool = True
    logits_chunk: int = 512
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "d_model", "num_heads", "d_head", "d_ff", "max_length")
        for name in (*sizes, "unroll", "logits_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}: expected at least 1, found {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout: expected a rate from 0 to below 1, found {self.dropout}")
        if self.local_window is not None and self.local_window < 1:
            raise ConfigError(f"model.local_window: expected None or at least 1, found {self.local_window}")
        if self.factors and self.factors not in DTYPES:
            raise ConfigError(f"model.factors: expected one of {', '.join(DTYPES)} or '', found {self.factors!r}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ConfigError(f"model.{name}: expected one of {', '.join(DTYPES)}, found {getattr(self, name)!r}")
            if getattr(self, name) == "float64" and not jax.config.jax_enable_x64:
                raise ConfigError(f"model.{name}: expected JAX_ENABLE_X64=1 with float64, found it off")

    @property
    def factor_dtype(self) -> str:
        """`factors`, or `dtype` if that is not given."""
        return self.factors or self.dtype


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far. Rows are aligned: one length for all.

    Attributes:
      keys: [L, B, H, S, D], so that the keys of a head lie together; or of each layer [B, H, S, D].
      values: like `keys`.
      segments: [B, S] int32, 0 on padding and on unused slots.
      positions: [B, S] int32.
      length: int32 scalar, the slot that is written next: the number of slots used, by tokens and by padding, unless
        the caller has turned back to the first.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    segments: jax.Array
    positions: jax.Array
    length: jax.Array


def init_cache(config: TransformerConfig, batch_size: int, max_length: int) -> Cache:
    """An empty cache with `max_length` slots (S) for each of `batch_size` rows (B)."""

    def empty(*layers):
        return _cached(jnp.zeros((*layers, batch_size, config.num_heads, max_length, config.d_head), config.dtype))

    def slots():
        return tuple(empty() for _ in range(config.num_layers)) if config.cache_by_layer else empty(config.num_layers)

    return Cache(
        keys=slots(),
        values=slots(),
        segments=jnp.zeros((batch_size, max_length), jnp.int32),
        positions=jnp.zeros((batch_size, max_length), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def written(cache: Cache, rows: jax.Array, slots: jax.Array, others: Cache) -> Cache:
    """A cache with rows of another in the place of what some of its rows have in some slots.

    Args:
      cache: of B rows.
      rows: [K] int32, the row that each row of the other goes to; B or more: nowhere.
      slots: [S'] int32, the slots that its slots go to.
      others: of K rows and S' slots.
    """

    def tokens(into: jax.Array, new: jax.Array) -> jax.Array:
        return into.at[rows[:, None], slots].set(new, mode="drop")

    def heads(into: jax.Array, new: jax.Array) -> jax.Array:
        place = (slice(None),) * (into.ndim - 4) + (rows[:, None, None], jnp.arange(into.shape[-3])[:, None], slots)
        return _cached(into.at[place].set(new, mode="drop"))

    return cache.replace(
        keys=jax.tree.map(heads, cache.keys, others.keys),
        values=jax.tree.map(heads, cache.values, others.values),
        segments=tokens(cache.segments, others.segments),
        positions=tokens(cache.positions, others.positions),
    )


class Dense(nn.Module):
    """x W + b over the last axis: [B, T, d] to [B, T, features].

    Attributes:
      scale: of the kernel's start, in units of `config.init_std`; the bias starts at 0.
    """

    config: TransformerConfig
    features: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        config, width = self.config, x.shape[-1]
        init = nn.initializers.normal(config.init_std * self.scale)
        kernel = self.param("kernel", init, (width, self.features), config.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), config.param_dtype).astype(config.dtype)
        # One row of tokens: XLA's CPU gradient of a product of two matrices is faster than
        # that of [B, T, d] with a matrix.
        flat = products.einsum("td,df->tf", x.reshape(-1, width), kernel, config.factor_dtype, config.dtype) + bias
        return checkpoint_name(flat, DENSE).reshape(*x.shape[:-1], self.features)


class SelfAttention(nn.Module):
    """Multi-head attention of one layer; see `Block` for the arguments."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, keys, values, layer, start, visible):
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.d_head)

        def project(name):
            flat = Dense(config, config.num_heads * config.d_head, name=name)(x)
            return flat.reshape(heads).swapaxes(1, 2)

        query, key, value = project("query"), project("key"), project("value")
        if keys is not None:
            keys, key = _append(keys, key, layer, start)
            values, value = _append(values, value, layer, start)
        mixed = (
            attention(query, key, value, visible, layer, config.factor_dtype).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        )
        return Dense(config, config.d_model, _residual_scale(config), name="out")(mixed), keys, values


class FeedForward(nn.Module):
    """Two dense layers with GELU (the tanh form of GPT-2) between: [B, T, d] to [B, T, d]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        config = self.config
        hidden = nn.gelu(Dense(config, config.d_ff, name="in")(x), approximate=True)
        return Dense(config, config.d_model, _residual_scale(config), name="out")(hidden)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

    The carry is (x [B, T, d], keys, values), where keys and values are the whole
    cache [L, B, H, S, D] or both None. The cache is carried, not scanned over, so
    that a decoding loop updates it in place instead of copying it.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, carry, layer, start, visible, deterministic):
        x, keys, values = carry
        dropout = nn.Dropout(self.config.dropout, deterministic=deterministic)
        normed = _layer_norm(self.config, "attention_norm")(x)
        update, keys, values = SelfAttention(self.config, name="attention")(normed, keys, values, layer, start, visible)
        x = x + dropout(update)
        normed = _layer_norm(self.config, "feed_forward_norm")(x)
        x = x + dropout(FeedForward(self.config, name="feed_forward")(normed))
        return (_between_blocks(self.config, x), keys, values), None


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
        self.final_norm = _layer_norm(config, None)

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
        x = _between_blocks(config, self.dropout(x, deterministic=deterministic))
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
        """The parameters with the kernels rounded once, and not by each step that reads them; changes no result."""

        def rounded(path, leaf):
            return leaf.astype(self.config.factor_dtype) if path[-1].key == "kernel" else leaf

        return jax.tree_util.tree_map_with_path(rounded, params)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], float32 at least, of hidden states [..., d]."""
        matrix = self.trunk.token_embedding if self.config.tied else self.unembedding
        flat = hidden.reshape(-1, self.config.d_model)
        logits = products.einsum("td,vd->tv", flat, matrix, self.config.factor_dtype, _at_least_float32(hidden))
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


def _between_blocks(config: TransformerConfig, x: jax.Array) -> jax.Array:
    """The residual stream [B, T, d] where the backward pass finds it in memory, cut by rows and by position."""
    return constrain(x, "batch", "length" if config.shard_length else None, None)


def _cached(x: jax.Array) -> jax.Array:
    """Keys or values [..., B, H, S, D] of a cache, cut by rows and by heads."""
    return constrain(x, *[None] * (x.ndim - 4), "batch", "heads", None, None)


def _append(cached: jax.Array, new: jax.Array, layer: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cache with T tokens of a layer [B, H, T, D] written behind the others, and that layer of it."""
    if cached.ndim == new.ndim:
        cached = _cached(jax.lax.dynamic_update_slice(cached, new, (0, 0, start, 0)))
        return cached, cached
    cached = _cached(jax.lax.dynamic_update_slice(cached, new[None], (layer, 0, 0, start, 0)))
    return cached, jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)


def _at_least_float32(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _residual_scale(config: TransformerConfig) -> float:
    # What adds to the residual stream starts smaller, so that its variance does not grow with depth
    # (Radford et al. 2019, section 2.3).
    return (2 * config.num_layers) ** -0.5


def _layer_norm(config: TransformerConfig, name: str | None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=config.dtype, param_dtype=config.param_dtype, name=name)
