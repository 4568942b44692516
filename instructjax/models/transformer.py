"""The decoder with a head that predicts tokens or a head that outputs one scalar.

A model takes its key-value cache as an argument and returns it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from instructjax.errors import CheckpointError
from instructjax.models import lora, matmul, partitioning
from instructjax.models.block import TRANSPOSED, Hidden
from instructjax.models.cache import Cache
from instructjax.models.config import TransformerConfig
from instructjax.models.quantization import Quantized, quantize
from instructjax.models.trunk import Trunk
from instructjax.typing import AnyArray, Array, Params

# The name of a rounded copy of the unembedding, which may be `Quantized` in decoding; see `unembedding_params`.
ROUNDED = "rounded"


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
        """Rounds and gathers the weights once, instead of in each step that reads them.

        Changes no result, unless `config.decoding_dtype` rounds kernels and unembedding further. Rounded kernels are
        also transposed, which makes products of few tokens faster on a CPU. On a mesh, all weights are gathered over
        "fsdp" after they are rounded, and stay sharded over "tensor". Adapters are merged, which changes results by
        rounding.
        """
        merged = lora.merge(params, self.config.lora_alpha)
        decoding: dict[tuple[str, ...], Array | Quantized] = {}
        for path, leaf in flax.traverse_util.flatten_dict(merged).items():
            name, dtype = path[-1], self._decoding_dtype(path[-1], leaf)
            axes = partitioning.weight_axes("/".join(path), leaf.ndim)
            if name == "kernel" and (self.config.decoding_dtype or leaf.dtype != dtype):
                decoding[(*path[:-1], TRANSPOSED)] = self._transposed(leaf, axes)
            else:
                decoding[path] = partitioning.gather_width(leaf.astype(dtype), axes)
        params = flax.traverse_util.unflatten_dict(decoding)
        if self.config.decoding_dtype:
            unembedding = quantize(self._unembedding(merged))
            return {**params, ROUNDED: _gathered(unembedding, partitioning.WEIGHTS["unembedding"])}
        return self.unembedding_params(params)

    def unembedding_params(self, params: Params) -> Params:
        """Rounds and gathers the unembedding once, instead of in each call of `unembed`; changes no result.

        The rounded copy has no gradient of its own: that of `unembed` goes to the unembedding.
        """
        matrix = self._unembedding(params)
        dtype = jnp.dtype(self.config.resolved_matmul_dtype)
        if matrix.dtype == dtype and partitioning.mesh_of_context() is None:
            return params
        rounded = jax.lax.stop_gradient(matrix).astype(dtype)
        return {**params, ROUNDED: partitioning.gather_width(rounded, partitioning.WEIGHTS["unembedding"])}

    def _transposed(self, kernel: Array, axes: tuple[str | None, ...]) -> Array | Quantized:
        """Rounds, transposes and gathers the kernels of all layers, whose axes have these names."""
        swapped = (*axes[:-2], axes[-1], axes[-2])
        # Rounded before it is moved, so that no float32 copy of another layout is made.
        if self.config.decoding_dtype:
            return _gathered(quantize(kernel, inputs=-2), swapped)
        rounded = partitioning.constrain(kernel.astype(self.config.resolved_matmul_dtype), *axes)
        return partitioning.gather_width(rounded.swapaxes(-1, -2), swapped)

    def _unembedding(self, params: Params) -> Array:
        """Returns the unembedding of a whole tree, which may be the token embedding."""
        matrix: Array = params["trunk"]["token_embedding"] if self.config.tied else params["unembedding"]
        return matrix

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
        rounded: Array | Quantized | None = self.get_variable("params", ROUNDED)
        if isinstance(rounded, Quantized):
            logits = matmul.einsum_of_quantized(spec, flat, rounded, self.config.quantized_matmul_dtype, dtype)
        elif rounded is not None:
            logits = matmul.einsum_of_rounded(spec, flat, rounded, matrix, dtype)
        else:
            logits = matmul.einsum(spec, flat, matrix, self.config.resolved_matmul_dtype, dtype)
        logits = partitioning.constrain(logits.reshape(*hidden.shape[:-1], -1), *axes)
        cap = self.config.logits_cap
        return cap * jnp.tanh(logits / cap) if cap else logits


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


@functools.partial(jax.jit, static_argnums=0)
def random_params(model: LanguageModel | ScalarModel, key: jax.Array) -> Params:
    """Returns random weights, and leaves their placement to the caller."""
    token = jnp.ones((1, 1), jnp.int32)
    return model.init(key, token, token, token * 0)["params"]


def abstract_params(model: LanguageModel | ScalarModel) -> Params:
    """Returns the shapes and dtypes of an unbound model's weights. JAX traces `init` once for equal models."""
    return random_params.eval_shape(model, jax.eval_shape(lambda: jax.random.key(0)))


def graft_trunk(target_params: Params, source_params: Params) -> Params:
    """Replaces the trunk of one model by that of another, as from SFT to reward model to value network.

    Args:
      target_params: a tree with "trunk", such as `init(...)["params"]`.
      source_params: a tree whose trunk has the same structure, shapes and dtypes. It may also have adapters.

    Returns:
      `target_params` with a copy of the trunk of `source_params`. Because it is a copy, a
      step that donates the buffers of one model does not delete those of the other.

    Raises:
      CheckpointError: the trunks differ; the message names the parameters on both sides.
    """
    target, source = (_shapes(lora.split(params)[0]["trunk"]) for params in (target_params, source_params))
    if differing := sorted(name for name in target.keys() | source.keys() if target.get(name) != source.get(name)):
        expected = ", ".join(f"{name} {target.get(name, 'absent')}" for name in differing)
        found = ", ".join(f"{name} {source.get(name, 'absent')}" for name in differing)
        raise CheckpointError(f"trunk: expected {expected}; found {found}")
    return {**target_params, "trunk": jax.tree.map(jnp.copy, source_params["trunk"])}


def _gathered(quantized: Quantized, axes: tuple[str | None, ...]) -> Quantized:
    """Applies `partitioning.gather_width` to integers with these axes, and to their scales."""
    values = partitioning.gather_width(quantized.values, axes)
    return Quantized(values, partitioning.gather_width(quantized.scale, axes[:-1]))


def _shapes(tree: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _at_least_float32(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
