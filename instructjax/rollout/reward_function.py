"""Uses a Python function of texts as the reward instead of a reward model: a rule, a checker or a judge."""

from __future__ import annotations

import dataclasses
import importlib
import math
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError
from instructjax.typing import AnyArray, Array

# function(prompts, responses) -> a score for each
Function = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A Python function with the interface of a ScalarModel, for `episode.score`. It has no weights.

    Compiled programs call back to Python for it, and the device waits meanwhile. Scores have
    no gradient, and PPO needs none.

    Attributes:
      function: returns a score for each response; must be deterministic.
      layout: of the episodes to score.
    """

    function: Function
    layout: Layout

    def apply(
        self,
        variables: Any,
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        *,
        deterministic: bool = True,
        rngs: Any = None,
    ) -> Float[Array, "B T"]:
        """Computes the score of each episode, repeated on all of its tokens. See `ScalarModel`."""
        del variables, positions, deterministic, rngs
        shape = jax.ShapeDtypeStruct(tokens.shape[:1], jnp.float32)
        scores = jax.pure_callback(self._on_host, shape, tokens, segments)
        return jnp.broadcast_to(scores[:, None], tokens.shape)

    def _on_host(self, given_tokens: AnyArray, given_segments: AnyArray) -> np.ndarray:
        tokens, segments = np.asarray(given_tokens), np.asarray(given_segments)
        border, decode = self.layout.max_prompt, self.layout.tokenizer.decode

        def texts(columns: slice) -> list[str]:
            rows = zip(tokens[:, columns], segments[:, columns], strict=True)
            return [decode([int(token) for token in row[inside > 0]]) for row, inside in rows]

        prompts = [text.removesuffix(self.layout.separator) for text in texts(slice(border))]
        return np.asarray(self.function(prompts, texts(slice(border, None))), np.float32)


def load(name: str) -> Function:
    """Imports the function MODULE:FUNCTION. Modules in the current folder are found, too.

    Raises:
      ConfigError: it cannot be imported, or does not return a finite number for each of two responses.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"ppo.reward_function: expected MODULE:FUNCTION, found {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is a program of the user
        raise ConfigError(f"ppo.reward_function: expected {name!r} to be found, found: {_one_line(error)}") from error
    try:
        found = function(["a prompt", "a prompt"], ["a response", ""])
    except Exception as error:
        raise ConfigError(
            f"ppo.reward_function: expected 2 finite numbers for 2 responses, found {_one_line(error)}"
        ) from error
    try:
        finite = np.shape(found) == (2,) and all(math.isfinite(score) for score in found)
    except (TypeError, ValueError):  # not a sequence of numbers
        finite = False
    if not finite:
        raise ConfigError(
            f"ppo.reward_function: expected 2 finite numbers for 2 responses, found {reprlib.repr(found)}"
        )
    return function


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
