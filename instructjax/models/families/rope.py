"""Rotary positions in config.json: `rope_parameters` in transformers 5, `rope_theta` and `rope_scaling` before."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig
from instructjax.models.families.family import Described, number, size

_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor"},
}


def rotary_fields(described: Described, where: str, default_base: float = 10_000.0) -> dict[str, Any]:
    """Converts the keys of rotary positions to fields of a TransformerConfig.

    Args:
      described: a config.json.
      where: the file, for errors.
      default_base: of the family.

    Raises:
      CheckpointError: the scaling is not one of those in `models.rotary`, or has other keys.
    """
    given = described.get("rope_parameters")
    place = "rope_scaling" if given is None else "rope_parameters"
    scaling = _mapping(described.get("rope_scaling") if given is None else given, f"{where}: {place}")
    base = number(scaling if "rope_theta" in scaling else described, "rope_theta", where, default_base)
    fraction = number({**described, **scaling}, "partial_rotary_factor", where, 1.0)
    fields = {"positions": "rotary", "rotary_base": base, "rotary_fraction": fraction}
    return fields | scaling_fields(scaling, described, f"{where}: {place}")


def scaling_fields(scaling: Described, described: Described, where: str) -> dict[str, Any]:
    """Converts a `rope_scaling` to fields of a TransformerConfig.

    Args:
      scaling: with its kind as "rope_type", or "type" in old files.
      described: the config.json around it.
      where: the file and the key, for errors.

    Raises:
      CheckpointError: see `rotary_fields`.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KEYS:
        raise CheckpointError(f"{where}: rope_type: expected one of {', '.join(_KEYS)}, found {reprlib.repr(kind)}")
    known = _KEYS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    unknown = sorted(key for key in scaling if key not in known and scaling[key] is not None)
    if unknown == ["truncate"] and scaling["truncate"] is True:
        unknown = []
    if unknown:
        raise CheckpointError(
            f"{where}: expected the keys {', '.join(sorted(known))} of {kind}, found {', '.join(unknown)}"
        )
    if kind == "default":
        return {}
    fields: dict[str, Any] = {"rotary_scaling": kind, "rotary_factor": number(scaling, "factor", where)}
    if kind == "linear":
        return fields
    longest = described.get("max_position_embeddings")
    original = size(scaling, "original_max_position_embeddings", where, longest)
    slow, fast = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
    defaults = (None, None) if kind == "llama3" else (1.0, 32.0)
    fields |= {"rotary_original_length": original, "rotary_slow": number(scaling, slow, where, defaults[0])}
    fields["rotary_fast"] = number(scaling, fast, where, defaults[1])
    if kind == "yarn":
        amplitude = 0.1 * math.log(fields["rotary_factor"]) + 1 if fields["rotary_factor"] > 1 else 1.0
        given = {key: value for key, value in scaling.items() if value is not None}
        fields["rotary_amplitude"] = number(given, "attention_factor", where, amplitude)
    return fields


def rotary_described(config: TransformerConfig) -> dict[str, Any]:
    """Converts the rotary fields of a config to `rope_theta` and `rope_scaling`, which all versions read."""
    scaling: dict[str, Any] | None = None
    if config.rotary_scaling:
        scaling = {"rope_type": config.rotary_scaling, "factor": config.rotary_factor}
        length = {"original_max_position_embeddings": config.rotary_original_length}
        if config.rotary_scaling == "llama3":
            scaling |= {"low_freq_factor": config.rotary_slow, "high_freq_factor": config.rotary_fast} | length
        if config.rotary_scaling == "yarn":
            scaling |= {"beta_slow": config.rotary_slow, "beta_fast": config.rotary_fast} | length
            scaling["attention_factor"] = config.rotary_amplitude
    return {"rope_theta": config.rotary_base, "rope_scaling": scaling}


def _mapping(found: Any, where: str) -> dict[str, Any]:
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{where}: expected an object, found {reprlib.repr(found)}")
    return dict(found or {})
