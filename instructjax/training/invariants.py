"""What must hold in every run, judged from the metrics that the run reports anyway.

The bugs of reinforcement learning are silent: the curves of a run whose reward is read
on a pad token look like those of a bad hyperparameter. So a run stops, before it saves,
where one of these does not hold, and says what that means. See docs/invariants.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from instructjax.errors import ConfigError, InvariantError

ACTIONS = ("stop", "warn")


@dataclasses.dataclass(frozen=True)
class Invariant:
    """A metric that has a limit.

    Attributes:
      limit: the most it may be, where networks compute in float32.
      low_precision_limit: the same, where they compute in bfloat16: 8 bits of mantissa, so
        that a logit of 20 is known to about 0.06.
      meaning: of a value above it, and where to look.
    """

    limit: float
    low_precision_limit: float
    meaning: str


INVARIANTS: Mapping[str, Invariant] = {
    "first_ratio_deviation": Invariant(
        1e-4,
        0.1,
        "the policy's ratio is not 1 before its first update: the update computes other log-probabilities than "
        "the rollout did (dropout, temperature, masks, or weights that changed in between)",
    ),
    "initial_kl": Invariant(
        1e-4,
        0.1,
        "the KL is not 0 at iteration 0: policy and reference are not the same network, or are not computed alike",
    ),
    "sampler_deviation": Invariant(
        1e-3,
        0.5,
        "tokens were drawn from another distribution than the training forward gives them: cache, positions, mask "
        "or temperature of the sampler, or old weights in it",
    ),
    "misplaced": Invariant(
        0.0,
        0.0,
        "masks, segments or positions of the episodes disagree with their tokens, or the reward is read at another "
        "token than the last that the policy produced",
    ),
    "displaced_score": Invariant(
        1e-3,
        1e-3,
        "the score does not stand at the last token of the response, or the KL penalty not at each of its tokens",
    ),
    "frozen_changes": Invariant(
        0.0,
        0.0,
        "weights that are only read, those of the reference policy or of the reward model, are not what they were "
        "when the stage began",
    ),
}


def violations(values: Mapping[str, float], dtype: str) -> list[str]:
    """What does not hold, one line each.

    Args:
      values: metrics by name; those that are no invariants have to be finite only.
      dtype: what the networks compute in, "float32" or "bfloat16".
    """
    found = []
    for name, value in values.items():
        invariant = INVARIANTS.get(name)
        if not math.isfinite(value):
            found.append(
                f"{name}: expected a finite number, found {value}: a network, its input or its loss overflowed"
            )
        elif invariant is not None:
            limit = invariant.limit if dtype == "float32" else invariant.low_precision_limit
            if value > limit:
                found.append(f"{name}: expected at most {limit:g}, found {value:.3g}: {invariant.meaning}")
    return found


def enforce(place: str, values: Mapping[str, float], *, dtype: str, action: str) -> None:
    """Stops or warns where an invariant does not hold.

    Args:
      place: the stage and step, to begin the line with.
      values: see `violations`.
      dtype: see `violations`.
      action: "stop" or "warn".

    Raises:
      InvariantError: what does not hold, unless the action is to warn.
    """
    found = violations(values, dtype)
    if found and action == "stop":
        raise InvariantError("; ".join(f"{place}: {line}" for line in found))
    for line in found:
        print(f"warning: {place}: {line}")


def check_action(action: str) -> None:
    """Raises ConfigError unless the action is one of ACTIONS."""
    if action not in ACTIONS:
        raise ConfigError(f"invariants: expected one of {', '.join(ACTIONS)}, found {action!r}")
