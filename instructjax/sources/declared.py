"""The source that a recipe declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from instructjax.sources.e2e import E2E
from instructjax.sources.files import Files
from instructjax.sources.sandbox import Sandbox
from instructjax.sources.source import Source

SOURCES: Mapping[str, Any] = {"files": Files, "sandbox": Sandbox, "e2e": E2E}


def source_of(config: ml_collections.ConfigDict) -> Source:
    """Returns the source of a recipe that `recipe.check` has accepted: it declares exactly one."""
    (name,) = (name for name in SOURCES if name in config)
    return SOURCES[name](config)
