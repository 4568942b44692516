"""Qwen3 (Yang et al. 2025): Llama, with norms of each head of queries and keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families import llama, qwen2
from instructjax.models.families.family import Described, size
from instructjax.models.families.rope import rotary_described, rotary_fields


def _fields(described: Described, where: str) -> dict[str, Any]:
    described = {**described, "head_dim": size(described, "head_dim", where, 128)}
    fields = llama.shared_fields(described, where) | rotary_fields(described, where)
    return fields | qwen2.windows(described, where) | {"query_key_norm": "head"}


def _described(config: TransformerConfig) -> dict[str, Any]:
    return llama.shared_described(config) | rotary_described(config) | qwen2.windows_described(config)


FAMILY = dataclasses.replace(
    qwen2.FAMILY,
    model_type="qwen3",
    language_model="Qwen3ForCausalLM",
    classifier="Qwen3ForSequenceClassification",
    table={**llama.TABLE, **llama.HEAD_NORMS},
    supported={**qwen2.FAMILY.supported, "attention_bias": (False,)},
    fields=_fields,
    described=_described,
)
