"""When training runs away: limits of a recipe's own, judged from the metrics that a run reports anyway.

An invariant must hold in every run; what is guarded here may be fine in one recipe and a
collapse in another, so the limits are config keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import ml_collections

from instructjax.errors import DivergenceError


@dataclasses.dataclass(frozen=True)
class Guard:
    """A range that a metric has to stay in.

    Attributes:
      key: the config key that has the limit.
      least: the lowest value that is fine.
      most: the highest.
      meaning: of a value outside.
    """

    key: str
    least: float
    most: float
    meaning: str


def from_config(config: ml_collections.ConfigDict) -> dict[str, Guard]:
    """The guards by metric.

    Args:
      config: the `guards` section of a recipe.
    """
    skipped = Guard(
        "guards.max_skipped",
        -math.inf,
        config.max_skipped - 1,  # a run of that many is the end
        "so many updates in a row had a loss or a gradient that is not finite, and none was made; "
        "a lower learning rate, or float32, may go on from the last checkpoint",
    )
    return {
        "skipped_in_a_row": skipped,
        "value_skipped_in_a_row": skipped,
        "kl": Guard(
            "guards.max_kl",
            -math.inf,
            config.max_kl,
            "the policy has left the initial policy, and with it the answers that the reward model knows",
        ),
        "response_tokens": Guard(
            "guards.min_response_tokens",
            config.min_response_tokens,
            math.inf,
            "the policy's answers have collapsed to almost nothing",
        ),
    }


def enforce(place: str, values: Mapping[str, float], guards: Mapping[str, Guard], action: str) -> None:
    """Stops or warns where a metric has left its range; runs of skipped updates always stop.

    Args:
      place: the stage and step, to begin the line with.
      values: metrics by name.
      guards: see `from_config`.
      action: "stop" or "warn".

    Raises:
      DivergenceError: what has left its range.
    """
    for name, value in values.items():
        guard = guards.get(name)
        if guard is None or guard.least <= value <= guard.most:
            continue
        line = f"{place}: {name} is {value:.4g}, and {guard.key} is reached: {guard.meaning}"
        if action == "stop" or name.endswith("skipped_in_a_row"):
            raise DivergenceError(line)
        print(f"warning: {line}")
