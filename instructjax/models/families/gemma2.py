"""Gemma 2 (Gemma Team 2024): GeGLU, norms around sublayers, soft caps, and windows in every other layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families import llama
from instructjax.models.families.family import Described, norm, number, size
from instructjax.models.families.rope import rotary_described, rotary_fields
from instructjax.models.families.windows import window_described, window_fields

_GELU = "gelu_pytorch_tanh"


def gemma_fields(described: Described, where: str) -> dict[str, Any]:
    """Converts the keys that the versions of Gemma share, without positions and windows.

    Raises:
      CheckpointError: a key is missing, or its value is not supported.
    """
    defaults = {"head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": True}
    described = {**defaults, **described}
    fields = llama.shared_fields(described, where)
    scalar = number(described, "query_pre_attn_scalar", where)
    return fields | {
        "norm": "rms_unit_offset",
        "norm_placement": "both",
        "activation": "gelu_tanh",
        "scaled_embedding": True,
        "query_scalar": None if scalar == fields["d_head"] else scalar,
        "score_cap": _cap(described, "attn_logit_softcapping", where),
        "logits_cap": _cap(described, "final_logit_softcapping", where),
    }


def gemma_described(config: TransformerConfig) -> dict[str, Any]:
    """Converts a config to the keys that the versions of Gemma share; the inverse of `gemma_fields`."""
    scalar = config.query_scalar or config.d_head
    return llama.shared_described(config) | {
        "hidden_act": _GELU,
        "hidden_activation": _GELU,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.score_cap or None,
        "final_logit_softcapping": config.logits_cap or None,
    }


def _cap(described: Described, key: str, where: str) -> float:
    return 0.0 if described.get(key) is None else number(described, key, where)


def _fields(described: Described, where: str) -> dict[str, Any]:
    defaults = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    defaults |= {"sliding_window": size(described, "sliding_window", where, 4096)}
    described = {**defaults, **described}
    fields = gemma_fields(described, where) | rotary_fields(described, where)
    return fields | window_fields(described, where, "LD")


def _described(config: TransformerConfig) -> dict[str, Any]:
    return gemma_described(config) | rotary_described(config) | window_described(config)


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="gemma2",
    language_model="Gemma2ForCausalLM",
    classifier="Gemma2ForSequenceClassification",
    table={
        **llama.SHARED,
        **norm("layers.{}.input_layernorm", "trunk/blocks/attention_norm"),
        **norm("layers.{}.post_attention_layernorm", "trunk/blocks/attention_out_norm"),
        **norm("layers.{}.pre_feedforward_layernorm", "trunk/blocks/feed_forward_norm"),
        **norm("layers.{}.post_feedforward_layernorm", "trunk/blocks/feed_forward_out_norm"),
    },
    supported={
        "hidden_activation": (_GELU, None),
        "hidden_act": (_GELU, "gelu"),  # old files name the wrong one; transformers computes hidden_activation
        "attention_bias": (False,),
        "use_bidirectional_attention": (False, None),
        "tie_word_embeddings": (True, False),
    },
    fields=_fields,
    described=_described,
)
