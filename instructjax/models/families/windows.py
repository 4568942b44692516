"""Which layers see a window only, in config.json: `layer_types`, or a rule of the family."""

from __future__ import annotations

import reprlib
from typing import Any

from instructjax.errors import CheckpointError
from instructjax.models.config import TransformerConfig, shortest_pattern
from instructjax.models.families.family import Described, size

_KINDS = {"full_attention": "D", "sliding_attention": "L"}


def window_fields(described: Described, where: str, pattern: str) -> dict[str, Any]:
    """Converts `sliding_window` and `layer_types` to fields of a TransformerConfig.

    Args:
      described: a config.json.
      where: the file, for errors.
      pattern: the family's, of D and L, if the file has no `layer_types`.

    Raises:
      CheckpointError: the kinds of layers are unknown, or not one for each layer.
    """
    layers, kinds = size(described, "num_hidden_layers", where), described.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _KINDS for kind in kinds):
            raise CheckpointError(
                f"{where}: layer_types: expected {' or '.join(_KINDS)} for each of {layers} layers, "
                f"found {reprlib.repr(kinds)}"
            )
        pattern = "".join(_KINDS[kind] for kind in kinds)
    pattern = shortest_pattern(pattern, layers)
    if described.get("sliding_window") is None or "L" not in pattern:
        return {}
    return {"local_window": size(described, "sliding_window", where), "window_pattern": pattern}


def window_described(config: TransformerConfig) -> dict[str, Any]:
    """Converts the window of a config to keys of config.json; the inverse of `window_fields`."""
    if config.local_window is None:
        return {"sliding_window": None}
    names = {letter: name for name, letter in _KINDS.items()}
    pattern = config.window_pattern
    kinds = [names[pattern[layer % len(pattern)]] for layer in range(config.num_layers)]
    return {"sliding_window": config.local_window, "layer_types": kinds}
