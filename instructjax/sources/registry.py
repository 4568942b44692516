"""All sources, by the section of a recipe that declares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_collections

from instructjax.sources.e2e import E2E
from instructjax.sources.files import Files
from instructjax.sources.final_answers import GSM8K, Arithmetic
from instructjax.sources.sandbox import Sandbox
from instructjax.sources.source import Source

SOURCES: Mapping[str, Callable[[ml_collections.ConfigDict], Source]] = {
    "files": Files,
    "sandbox": Sandbox,
    "e2e": E2E,
    "gsm8k": GSM8K,
    "arithmetic": Arithmetic,
}


def make_source(config: ml_collections.ConfigDict) -> Source:
    """Builds the source that a recipe declares.

    Args:
      config: a whole recipe that `recipe.check` has accepted, so it declares exactly one source.
    """
    (name,) = (name for name in SOURCES if name in config)
    return SOURCES[name](config)
