"""Converts weights of the GPT-2 family to and from the format of Hugging Face.

This module knows the names and shapes of both formats; `pretrained` reads and writes the
files. Both sides compute the same function, so a model that is exported and imported again
has the same bits and gives the same logits.

    theirs                          ours, of layer i
    transformer.wte.weight          trunk/token_embedding
    transformer.wpe.weight          trunk/position_embedding
    transformer.h.i.ln_1            trunk/blocks/attention_norm[i]
    transformer.h.i.attn.c_attn     trunk/blocks/attention/{query, key, value}[i], side by side
    transformer.h.i.attn.c_proj     trunk/blocks/attention/out[i]
    transformer.h.i.ln_2            trunk/blocks/feed_forward_norm[i]
    transformer.h.i.mlp.c_fc        trunk/blocks/feed_forward/in[i]
    transformer.h.i.mlp.c_proj      trunk/blocks/feed_forward/out[i]
    transformer.ln_f                trunk/final_norm
    lm_head.weight                  unembedding, if it is not wte
    score.weight                    head/kernel of a reward model
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig
from instructjax.typing import AnyArray, Array, Params

Tensors: TypeAlias = Mapping[str, AnyArray]  # by their names in a safetensors file

_BUFFERS = re.compile(r".*\.attn\.(masked_)?bias$")  # masks that old files keep next to the weights

# The values of a GPT-2 config that this package supports.
_REQUIRED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
_DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "n_inner": None,
}


def config_of(described: Mapping[str, Any], where: str = "config.json") -> TransformerConfig:
    """Converts a config.json to the config of a model that computes in float32.

    Raises:
      CheckpointError: a key is missing, or its value is not supported.
    """
    described = {**_DEFAULTS, **described}
    for key, allowed in _REQUIRED.items():
        if (found := described.get(key)) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise CheckpointError(f"{where}: {key}: expected {expected}, found {reprlib.repr(found)}")
    sizes = {}
    for key in ("vocab_size", "n_layer", "n_embd", "n_head", "n_positions"):
        sizes[key] = _size(described.get(key), f"{where}: {key}")
    if sizes["n_embd"] % sizes["n_head"]:
        raise CheckpointError(
            f"{where}: n_embd: expected a multiple of n_head ({sizes['n_head']}), found {sizes['n_embd']}"
        )
    return TransformerConfig(
        vocab_size=sizes["vocab_size"],
        num_layers=sizes["n_layer"],
        d_model=sizes["n_embd"],
        num_heads=sizes["n_head"],
        d_head=sizes["n_embd"] // sizes["n_head"],
        d_ff=4 * sizes["n_embd"] if described["n_inner"] is None else _size(described["n_inner"], f"{where}: n_inner"),
        max_length=sizes["n_positions"],
        tied=bool(described["tie_word_embeddings"]),
    )


def _size(found: Any, where: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found < 2**31:
        raise CheckpointError(f"{where}: expected a positive integer, found {reprlib.repr(found)}")
    return found


def describe(config: TransformerConfig, *, eos_id: int, pad_id: int, is_reward_model: bool = False) -> dict[str, Any]:
    """Converts the config of a model to a config.json; the inverse of `config_of`.

    Raises:
      CheckpointError: GPT-2 cannot express the model: attention is banded, or num_heads * d_head is not d_model.
    """
    if config.local_window is not None:
        raise CheckpointError(f"model.local_window: expected None, as GPT-2 has no bands, found {config.local_window}")
    if config.num_heads * config.d_head != config.d_model:
        raise CheckpointError(
            f"model.d_head: expected d_model / num_heads = {config.d_model / config.num_heads:g} for GPT-2, "
            f"found {config.d_head}"
        )
    described = {
        "architectures": ["GPT2ForSequenceClassification" if is_reward_model else "GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_length,
        "n_ctx": config.max_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tied,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "torch_dtype": "float32",
    }
    if is_reward_model:
        described |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return described


def params_of(tensors: Tensors, config: TransformerConfig, where: str = "model.safetensors") -> Params:
    """Converts tensors to the parameters of a LanguageModel, or of a ScalarModel if there is a `score.weight`.

    Args:
      tensors: by name, with or without the prefix "transformer.", of any float type.
      config: of the model. Its vocabulary may be smaller than theirs, which is often padded to
        a round number; the extra rows are left out.
      where: the file, for errors.

    Raises:
      CheckpointError: a name is missing or unknown, or a shape does not fit. The error shows both sides.
    """
    found = {
        name if name.startswith(("lm_head.", "score.")) else f"transformer.{name.removeprefix('transformer.')}": tensor
        for name, tensor in tensors.items()
        if not _BUFFERS.match(name)
    }
    is_scalar = "score.weight" in found
    if is_scalar or config.tied:
        found.pop("lm_head.weight", None)  # the same as wte, or unused by a reward model
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in found and found[name].ndim == 2 and found[name].shape[0] > config.vocab_size:
            found[name] = found[name][: config.vocab_size]
    _check(found, _shapes(config, is_scalar), where)
    if numbers := sorted(name for name, tensor in found.items() if not jnp.issubdtype(tensor.dtype, jnp.floating)):
        raise CheckpointError(f"{where}: expected floating-point numbers, found {numbers[0]} {found[numbers[0]].dtype}")
    for name, tensor in found.items():
        if not np.isfinite(np.asarray(tensor, np.float32)).all():
            raise CheckpointError(f"{where}: {name}: expected finite numbers, found NaN or infinity")

    def take(name: str) -> Array:
        return jnp.asarray(found[name], config.param_dtype)

    def layers(name: str) -> Array:
        return jnp.stack([take(f"transformer.h.{i}.{name}") for i in range(config.num_layers)])

    def dense(name: str) -> dict[str, Array]:
        return {"kernel": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}

    def norm(name: str) -> dict[str, Array]:
        return {"scale": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}

    joined = {key: jnp.split(value, 3, axis=-1) for key, value in dense("attn.c_attn").items()}
    parts = {name: {key: joined[key][i] for key in joined} for i, name in enumerate(("query", "key", "value"))}
    params: dict[str, Any] = {
        "trunk": {
            "token_embedding": take("transformer.wte.weight"),
            "position_embedding": take("transformer.wpe.weight"),
            "blocks": {
                "attention_norm": norm("ln_1"),
                "attention": {**parts, "out": dense("attn.c_proj")},
                "feed_forward_norm": norm("ln_2"),
                "feed_forward": {"in": dense("mlp.c_fc"), "out": dense("mlp.c_proj")},
            },
            "final_norm": {"scale": take("transformer.ln_f.weight"), "bias": take("transformer.ln_f.bias")},
        }
    }
    if is_scalar:
        params["head"] = {"kernel": take("score.weight")[0], "bias": jnp.zeros((), config.param_dtype)}
    elif not config.tied:
        params["unembedding"] = take("lm_head.weight")
    return params


def tensors_of(params: Params, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Converts the parameters of a LanguageModel or ScalarModel to float32 tensors; the inverse of `params_of`.

    Their reward model has no bias. Our score is w h + c, where h = s x + b is the output of the
    final norm, which only the head reads. With b + c w / |w|^2 instead of b, w h is the same score.

    Raises:
      CheckpointError: w is 0, or so small that no b gives the score c.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    trunk, blocks = params["trunk"], params["trunk"]["blocks"]
    final = dict(trunk["final_norm"])
    tensors = {
        "transformer.wte.weight": trunk["token_embedding"],
        "transformer.wpe.weight": trunk["position_embedding"],
    }
    if "head" in params:
        kernel, bias = (params["head"][name].astype(np.float64) for name in ("kernel", "bias"))
        square = np.sum(kernel**2)
        with np.errstate(over="ignore"):
            final["bias"] = (final["bias"] + bias * kernel / (square or np.inf)).astype(np.float32)
        if not square or not np.isfinite(final["bias"]).all():
            raise CheckpointError(
                f"head/kernel: expected weights that can carry the offset {bias:.4g}, found a norm of {square**0.5:.4g}"
            )
        tensors["score.weight"] = params["head"]["kernel"][None]
    elif not config.tied:
        tensors["lm_head.weight"] = params["unembedding"]
    tensors |= {"transformer.ln_f.weight": final["scale"], "transformer.ln_f.bias": final["bias"]}
    attention = blocks["attention"]
    joined = {
        key: np.concatenate([attention[name][key] for name in ("query", "key", "value")], axis=-1)
        for key in ("kernel", "bias")
    }
    for i in range(config.num_layers):
        for name, part in (
            ("attn.c_attn", joined),
            ("attn.c_proj", attention["out"]),
            ("mlp.c_fc", blocks["feed_forward"]["in"]),
            ("mlp.c_proj", blocks["feed_forward"]["out"]),
            ("ln_1", blocks["attention_norm"]),
            ("ln_2", blocks["feed_forward_norm"]),
        ):
            weight = part["scale" if "scale" in part else "kernel"]
            tensors[f"transformer.h.{i}.{name}.weight"] = weight[i]
            tensors[f"transformer.h.{i}.{name}.bias"] = part["bias"][i]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def check_fit(found: TransformerConfig, expected: TransformerConfig, where: str) -> None:
    """Raises an error if the model in a folder does not have the shape that a recipe expects.

    Raises:
      CheckpointError: they differ in more than a padded vocabulary. The error shows both sides.
    """
    names = ("num_layers", "d_model", "num_heads", "d_head", "d_ff", "max_length", "local_window", "tied")
    wrong = [name for name in names if getattr(found, name) != getattr(expected, name)]
    if found.vocab_size < expected.vocab_size:
        wrong.append("vocab_size")
    if wrong:
        sides = [", ".join(f"{name} {getattr(side, name)}" for name in wrong) for side in (expected, found)]
        raise CheckpointError(f"{where}: model: expected {sides[0]}, found {sides[1]}")


def _shapes(config: TransformerConfig, is_scalar: bool) -> dict[str, tuple[int, ...]]:
    width, hidden = config.d_model, config.d_ff
    shapes = {
        "transformer.wte.weight": (config.vocab_size, width),
        "transformer.wpe.weight": (config.max_length, width),
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
    }
    for i in range(config.num_layers):
        for name, (inner, outer) in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, hidden),
            "mlp.c_proj": (hidden, width),
        }.items():
            shapes |= {f"transformer.h.{i}.{name}.weight": (inner, outer), f"transformer.h.{i}.{name}.bias": (outer,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"transformer.h.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
    if is_scalar:
        shapes["score.weight"] = (1, width)
    elif not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def _check(found: Tensors, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    wrong = sorted(
        name
        for name in found.keys() | shapes.keys()
        if name not in found or tuple(found[name].shape) != shapes.get(name)
    )
    if wrong:
        expected = ", ".join(f"{name:.100} {list(shapes[name]) if name in shapes else 'absent'}" for name in wrong[:4])
        there = ", ".join(f"{name:.100} {list(found[name].shape) if name in found else 'absent'}" for name in wrong[:4])
        raise CheckpointError(f"{where}: expected {expected}; found {there}; {len(wrong)} tensors do not fit")
