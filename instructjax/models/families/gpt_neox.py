"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructjax.models.config import TransformerConfig
from instructjax.models.families.family import (
    SAME,
    Described,
    Family,
    Layout,
    Table,
    dense,
    head_width,
    norm,
    number,
    size,
)
from instructjax.models.families.rope import rotary_described, rotary_fields
from instructjax.typing import AnyArray


def _split(tensor: AnyArray, config: TransformerConfig) -> list[AnyArray]:
    """Splits rows [H x 3 x D, ...], in which each head has its query, its key and its value."""
    heads = tensor.reshape(config.num_heads, 3, config.d_head, *tensor.shape[1:])
    return [heads[:, i].reshape(-1, *tensor.shape[1:]).T for i in range(3)]


def _join(weights: Sequence[AnyArray], config: TransformerConfig) -> AnyArray:
    rows = [weight.T.reshape(config.num_heads, config.d_head, *weight.T.shape[1:]) for weight in weights]
    return np.stack(rows, axis=1).reshape(-1, *rows[0].shape[2:])


_BY_HEAD = Layout(_split, _join)
_PARTS = [f"trunk/blocks/attention/{name}" for name in ("query", "key", "value")]
_TABLE: Table = {
    "embed_in.weight": (SAME, ("trunk/token_embedding",)),
    **norm("layers.{}.input_layernorm", "trunk/blocks/attention_norm"),
    **norm("layers.{}.post_attention_layernorm", "trunk/blocks/feed_forward_norm"),
    "layers.{}.attention.query_key_value.weight": (_BY_HEAD, tuple(f"{part}/kernel" for part in _PARTS)),
    "layers.{}.attention.query_key_value.bias": (_BY_HEAD, tuple(f"{part}/bias" for part in _PARTS)),
    **dense("layers.{}.attention.dense", "trunk/blocks/attention/out"),
    **dense("layers.{}.mlp.dense_h_to_4h", "trunk/blocks/feed_forward/in"),
    **dense("layers.{}.mlp.dense_4h_to_h", "trunk/blocks/feed_forward/out"),
    **norm("final_layer_norm", "trunk/final_norm"),
}
_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def _fields(described: Described, where: str) -> dict[str, Any]:
    old = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    moved = {new: described[name] for new, name in old.items() if name in described}
    described = {"partial_rotary_factor": 0.25, **moved, **described}
    return {
        "vocab_size": size(described, "vocab_size", where),
        "num_layers": size(described, "num_hidden_layers", where),
        "d_model": size(described, "hidden_size", where),
        "num_heads": size(described, "num_attention_heads", where),
        "d_head": head_width(described, "hidden_size", "num_attention_heads", where),
        "d_ff": size(described, "intermediate_size", where),
        "max_length": size(described, "max_position_embeddings", where),
        "norm_epsilon": number(described, "layer_norm_eps", where, 1e-5),
        "parallel_residual": described.get("use_parallel_residual", True),
        "activation": _GELUS[described.get("hidden_act", "gelu")],
        "tied": described.get("tie_word_embeddings", False),
    } | rotary_fields(described, where)


def _described(config: TransformerConfig) -> dict[str, Any]:
    rotary = rotary_described(config)
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "rotary_emb_base": rotary["rope_theta"],
        "rotary_pct": config.rotary_fraction,
        "rope_scaling": rotary["rope_scaling"],
        "tie_word_embeddings": config.tied,
    }


FAMILY = Family(
    model_type="gpt_neox",
    language_model="GPTNeoXForCausalLM",
    classifier="GPTNeoXForSequenceClassification",
    prefix="gpt_neox.",
    table=_TABLE,
    supported={
        "hidden_act": tuple(_GELUS),
        "use_parallel_residual": (True, False),
        "attention_bias": (True,),
        "tie_word_embeddings": (False, True),
    },
    fields=_fields,
    described=_described,
)
