"""Gemma 3 (Gemma Team 2025), text only: norms of queries and keys, and another rotary base in local layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig
from instructjax.models.families import gemma2, llama
from instructjax.models.families.family import Described, number, size
from instructjax.models.families.rope import rotary_described, rotary_fields
from instructjax.models.families.windows import window_described, window_fields

_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0


def _fields(described: Described, where: str) -> dict[str, Any]:
    described = {"sliding_window": 4096, **described}
    period = size(described, "sliding_window_pattern", where, 6)
    window = window_fields(described, where, "L" * (period - 1) + "D" if period > 1 else "D")
    fields = gemma2.gemma_fields(described, where) | _rotary(described, where)
    if not window:
        fields.pop("rotary_local_base")
    return fields | window | {"query_key_norm": "head"}


def _rotary(described: Described, where: str) -> dict[str, Any]:
    """Reads the rotary positions of dense layers, and the base of local layers."""
    given = described.get("rope_parameters")
    if given is None:
        local = number(described, "rope_local_base_freq", where, _LOCAL_BASE)
        return rotary_fields(described, where, _BASE) | {"rotary_local_base": local}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(given, dict) or not all(isinstance(given.get(kind), dict) for kind in kinds):
        raise CheckpointError(f"{where}: rope_parameters: expected objects {' and '.join(kinds)}, found {given!r:.60}")
    dense, near = ({**described, "rope_parameters": given[kind]} for kind in kinds)
    local_fields = rotary_fields(near, where, _LOCAL_BASE)
    if "rotary_scaling" in local_fields:
        raise CheckpointError(
            f"{where}: rope_parameters: sliding_attention: expected default, found {local_fields['rotary_scaling']}"
        )
    return rotary_fields(dense, where, _BASE) | {"rotary_local_base": local_fields["rotary_base"]}


def _described(config: TransformerConfig) -> dict[str, Any]:
    local = config.rotary_local_base or config.rotary_base
    rotary = rotary_described(config) | {"rope_local_base_freq": local}
    return gemma2.gemma_described(config) | rotary | window_described(config)


FAMILY = dataclasses.replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    language_model="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    table={**gemma2.FAMILY.table, **llama.HEAD_NORMS},
    fields=_fields,
    described=_described,
)
