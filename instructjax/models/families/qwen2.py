"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama, with biases of queries, keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.models.config import TransformerConfig
from instructjax.models.families import llama
from instructjax.models.families.family import Described, size
from instructjax.models.families.rope import rotary_described, rotary_fields
from instructjax.models.families.windows import window_described, window_fields


def windows(described: Described, where: str) -> dict[str, Any]:
    """Converts the keys of windows, which are off unless `use_sliding_window` is true.

    Raises:
      CheckpointError: see `window_fields`.
    """
    if not described.get("use_sliding_window", False):
        return {}
    layers = size(described, "num_hidden_layers", where)
    first = described.get("max_window_layers", 28)
    dense = min(first, layers) if isinstance(first, int) and first >= 0 else layers
    rule = "L" if not dense else "D" * dense + "L" * (layers - dense) if described.get("layer_types") is None else "D"
    return window_fields(described, where, rule)


def windows_described(config: TransformerConfig) -> dict[str, Any]:
    """Converts the window of a config; the inverse of `windows`."""
    return window_described(config) | {"use_sliding_window": config.local_window is not None}


def _fields(described: Described, where: str) -> dict[str, Any]:
    fields = llama.shared_fields(described, where) | rotary_fields(described, where)
    return fields | windows(described, where) | {"biases": "query_key_value"}


def _described(config: TransformerConfig) -> dict[str, Any]:
    return llama.shared_described(config) | rotary_described(config) | windows_described(config)


FAMILY = dataclasses.replace(
    llama.FAMILY,
    model_type="qwen2",
    language_model="Qwen2ForCausalLM",
    classifier="Qwen2ForSequenceClassification",
    supported={
        "hidden_act": ("silu",),
        "use_sliding_window": (False, True),
        "tie_word_embeddings": (False, True),
    },
    fields=_fields,
    described=_described,
)
