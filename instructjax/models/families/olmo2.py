"""OLMo 2 (OLMo team 2024): Llama, with norms after sublayers, and norms of all queries and of all keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families import llama
from instructjax.models.families.family import Described, norm
from instructjax.models.families.rope import rotary_described, rotary_fields


def _fields(described: Described, where: str) -> dict[str, Any]:
    fields = llama.shared_fields(described, where, 1e-5) | rotary_fields(described, where)
    return fields | {"norm_placement": "post", "query_key_norm": "width"}


def _described(config: TransformerConfig) -> dict[str, Any]:
    return llama.shared_described(config) | rotary_described(config)


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="olmo2",
    language_model="Olmo2ForCausalLM",
    classifier="Olmo2ForSequenceClassification",
    table={
        **llama.SHARED,
        **llama.HEAD_NORMS,
        **norm("layers.{}.post_attention_layernorm", "trunk/blocks/attention_out_norm"),
        **norm("layers.{}.post_feedforward_layernorm", "trunk/blocks/feed_forward_out_norm"),
    },
    supported={"hidden_act": ("silu",), "attention_bias": (False,), "tie_word_embeddings": (False, True)},
    fields=_fields,
    described=_described,
)
