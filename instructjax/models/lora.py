"""Low-rank adapters (Hu et al. 2021, LoRA, arXiv 2106.09685): W + (alpha / r) A B, where W does not learn.

The weights of a network are then two trees, which `attach` makes one and `split` makes two again:

    base      embeddings, norms, biases and kernels W [L, in, out]: what does not learn
    learned   next to each adapted kernel, lora_a [L, in, r] and lora_b [L, r, out]; and the head of a scalar model

Only the learned tree has gradients, optimizer state, an average and checkpoints. Models take whole trees, with or
without adapters. A dense layer with adapters computes x W + (alpha / r) (x A) B, so no gradient has the shape of W.
`merge` gives the same function as weights without adapters, for decoding and export.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Key

from instructjax.errors import ConfigError
from instructjax.models.config import TransformerConfig
from instructjax.typing import Array, Model, Params

LORA_A, LORA_B = "lora_a", "lora_b"  # the names of A and B in the tree, next to "kernel"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters of a network.

    Attributes:
      rank: r, the width between A and B.
      alpha: adapters are multiplied by alpha / rank.
      dropout: rate of dropout on the input of A, in the stages that have dropout.
      matrices: patterns of the names of the adapted kernels, such as "attention/*"; see `kernels`.
    """

    rank: int
    alpha: float
    dropout: float
    matrices: tuple[str, ...]


def kernels(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Returns the inputs and outputs of each kernel of a block, by its name."""
    width, inner, shared = config.d_model, config.num_heads * config.d_head, config.kv_heads * config.d_head
    found = {
        "attention/query": (width, inner),
        "attention/key": (width, shared),
        "attention/value": (width, shared),
        "attention/out": (inner, width),
        "feed_forward/in": (width, config.d_ff),
        "feed_forward/gate": (width, config.d_ff),
        "feed_forward/out": (config.d_ff, width),
    }
    return {name: sides for name, sides in found.items() if config.gated or name != "feed_forward/gate"}


def adapted(lora: LoraConfig, config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Returns those of `kernels` that have adapters.

    Raises:
      ConfigError: a pattern matches no kernel, there is no pattern, or the rank is larger than a side of a kernel.
    """
    names = kernels(config)
    for pattern in lora.matrices or ("",):
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"lora.matrices: expected patterns of {', '.join(names)}, found {pattern!r}")
    chosen = {
        name: sides
        for name, sides in names.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.matrices)
    }
    name, sides = min(chosen.items(), key=lambda item: min(item[1]))
    if lora.rank > min(sides):
        raise ConfigError(f"lora.rank: expected at most {min(sides)}, the smaller side of {name}, found {lora.rank}")
    return chosen


def init(key: Key[Array, ""], lora: LoraConfig, config: TransformerConfig) -> Params:
    """Returns adapters that change nothing yet: A is normal with variance 1 / in, and B is 0 (section 4.1).

    Raises:
      ConfigError: see `adapted`.
    """
    flat: dict[tuple[str, ...], Array] = {}
    for number, (name, (inputs, outputs)) in enumerate(adapted(lora, config).items()):
        place = ("trunk", "blocks", *name.split("/"))
        shape = (config.num_layers, inputs, lora.rank)
        noise = jax.random.normal(jax.random.fold_in(key, number), shape, config.param_dtype)
        flat[(*place, LORA_A)] = noise * inputs**-0.5
        flat[(*place, LORA_B)] = jnp.zeros((config.num_layers, lora.rank, outputs), config.param_dtype)
    return flax.traverse_util.unflatten_dict(flat)


def count_parameters(lora: LoraConfig, config: TransformerConfig) -> int:
    """Counts the parameters of the adapters of one network."""
    return config.num_layers * lora.rank * sum(sum(sides) for sides in adapted(lora, config).values())


def attach(base: Params, learned: Params) -> dict[str, Any]:
    """Returns one tree with the arrays of both; no array is copied.

    A name that both have is taken from `learned`.
    """
    both = dict(base)
    for name, value in learned.items():
        under = both.get(name)
        both[name] = attach(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return both


def split(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (base, learned) of a whole tree; no array is copied."""
    parts: tuple[dict[tuple[str, ...], Array], dict[tuple[str, ...], Array]] = ({}, {})
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        parts[path[-1] in (LORA_A, LORA_B) or path[0] == "head"][path] = leaf
    base, learned = map(flax.traverse_util.unflatten_dict, parts)
    return base, learned


def has_adapters(params: Params) -> bool:
    """Returns whether a tree has adapters."""
    return any(path[-1] == LORA_A for path in flax.traverse_util.flatten_dict(params))


def merge(params: Params, alpha: float) -> Params:
    """Returns weights without adapters that compute the same function: W + (alpha / r) A B in place of W.

    Args:
      params: a whole tree; one without adapters is returned as it is.
      alpha: see `LoraConfig`.
    """
    flat = flax.traverse_util.flatten_dict(params)
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in (LORA_A, LORA_B)}
    for path, a in flat.items():
        if path[-1] == LORA_A:
            b, kernel = flat[(*path[:-1], LORA_B)], (*path[:-1], "kernel")
            product = jnp.einsum("lir,lro->lio", a, b, precision="highest")
            merged[kernel] = (merged[kernel] + alpha / a.shape[-1] * product).astype(merged[kernel].dtype)
    return flax.traverse_util.unflatten_dict(merged)


@dataclasses.dataclass(frozen=True, eq=False)
class WithBase:
    """A model whose weights are the learned tree alone, for code that differentiates all weights it is given.

    Attributes:
      model: a LanguageModel or a ScalarModel.
      base: its base, an argument of the compiled program that makes this object. It may have more than the model
        reads, such as an unembedding: so networks with different heads share it.
    """

    model: Model
    base: Params

    @property
    def config(self) -> TransformerConfig:
        """The model's shape."""
        return self.model.config

    def apply(self, variables: Mapping[str, Params], *args: Any, **kwargs: Any) -> Any:
        """Calls the model's `apply`; the weights may be learned or whole."""
        return self.model.apply({**variables, "params": self.whole(variables["params"])}, *args, **kwargs)

    def decoding_params(self, params: Params) -> Params:
        """Returns the model's `decoding_params`, a whole tree with the adapters merged."""
        return self.model.decoding_params(self.whole(params))

    def unembedding_params(self, params: Params) -> Params:
        """Returns the model's `unembedding_params`, a whole tree."""
        return self.model.unembedding_params(self.whole(params))

    def whole(self, params: Params) -> Params:
        """Attaches the base, unless these weights are a whole tree already."""
        return params if "token_embedding" in params.get("trunk", {}) else attach(self.base, params)
