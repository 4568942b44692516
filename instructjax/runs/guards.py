"""Guards: a recipe's own limits on its metrics, which detect divergence.

An invariant must hold in every run. A value that violates a guard may be fine in one recipe
and a collapse in another, so the limits are config keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import ml_collections

from instructjax import warning_log
from instructjax.errors import DivergenceError


@dataclasses.dataclass(frozen=True)
class Guard:
    """The allowed range of a metric.

    Attributes:
      key: the config key of the limit.
      least: the smallest allowed value.
      most: the largest allowed value.
      meaning: what a value outside the range means, and what to do.
    """

    key: str
    least: float
    most: float
    meaning: str


def from_config(config: ml_collections.ConfigDict) -> dict[str, Guard]:
    """Returns the guards of a recipe by metric.

    Args:
      config: the `guards` section of a recipe.
    """
    skipped = Guard(
        "guards.max_skipped",
        -math.inf,
        config.max_skipped - 1,  # max_skipped in a row are too many
        "this many updates in a row were skipped because the loss or the gradient was not finite; "
        "to continue from the last checkpoint, try a lower learning rate or float32",
    )
    return {
        "skipped_in_a_row": skipped,
        "value_skipped_in_a_row": skipped,
        "kl": Guard(
            "guards.max_kl",
            -math.inf,
            config.max_kl,
            "the policy is far from the initial policy, and its answers are unlike those that the reward model "
            "was trained on",
        ),
        "response_tokens": Guard(
            "guards.min_response_tokens",
            config.min_response_tokens,
            math.inf,
            "the policy's answers have collapsed to almost no tokens",
        ),
        "missing_eos": Guard(
            "guards.max_missing_eos",
            -math.inf,
            config.max_missing_eos,
            "the policy's answers no longer end within data.max_response; try ppo.missing_eos_penalty",
        ),
        "entropy": Guard(
            "guards.min_entropy",
            config.min_entropy,
            math.inf,
            "the policy's entropy has collapsed: it gives nearly the same answer each time; try a larger "
            "ppo.kl_coefficient or a lower learning rate",
        ),
    }


def enforce(place: str, values: Mapping[str, float], guards: Mapping[str, Guard], action: str) -> None:
    """Raises an error or prints a warning if a metric is outside its range.

    Args:
      place: the stage and step, with which the message begins.
      values: metrics by name.
      guards: see `from_config`.
      action: "stop" or "warn". Too many skipped updates always stop.

    Raises:
      DivergenceError: names the metric and the key of its limit.
    """
    for name, value in values.items():
        guard = guards.get(name)
        if guard is None or guard.least <= value <= guard.most:
            continue
        line = f"{place}: {name} is {value:.4g}, and {guard.key} is reached: {guard.meaning}"
        if action == "stop" or name.endswith("skipped_in_a_row"):
            raise DivergenceError(line)
        warning_log.warn(line)
