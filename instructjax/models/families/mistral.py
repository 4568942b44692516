"""Mistral (Jiang et al. 2023): Llama, with a window in all layers of the first version."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families import llama
from instructjax.models.families.family import Described
from instructjax.models.families.rope import rotary_described, rotary_fields
from instructjax.models.families.windows import window_fields


def _fields(described: Described, where: str) -> dict[str, Any]:
    fields = llama.shared_fields(described, where) | rotary_fields(described, where)
    return fields | window_fields(described, where, "L")


def _described(config: TransformerConfig) -> dict[str, Any]:
    # transformers ignores layer_types here, so only a window in all layers comes back from it.
    window = {"sliding_window": config.local_window}
    return llama.shared_described(config) | rotary_described(config) | window


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="mistral",
    language_model="MistralForCausalLM",
    classifier="MistralForSequenceClassification",
    supported={"hidden_act": ("silu",), "layer_types": (None,), "tie_word_embeddings": (False, True)},
    fields=_fields,
    described=_described,
)
