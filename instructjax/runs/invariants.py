"""What must hold in every run, judged from the metrics that the run reports anyway.

The bugs of reinforcement learning are silent: the curves of a run whose reward is read
on a pad token look like those of a bad hyperparameter. So a run stops, before it saves,
where one of these does not hold, and says what that means. See docs/invariants.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp

from instructjax.errors import InvariantError

Precision = Literal["float32", "low"]


@dataclasses.dataclass(frozen=True)
class Invariant:
    """A metric that has a limit.

    Attributes:
      limit: the most it may be, where products of matrices keep the 24 bits of float32.
      low_precision_limit: the same, where they do not; see `precision`. docs/invariants.md
        says what both were chosen from.
      meaning: of a value above it, and where to look.
    """

    limit: float
    low_precision_limit: float
    meaning: str


_RATIO = (
    "the policy's ratio is not 1 before its first update: the update computes other log-probabilities than the "
    "rollout did; look for dropout, temperature, positions, masks, or weights that changed in between"
)
_SAMPLER = (
    "tokens were drawn from another distribution than the training forward gives them; look at cache, positions, "
    "mask and temperature of the sampler, and for old weights in it"
)

# KLs are the mean of (log-ratio)² / 2 over tokens, in nats: never negative, and the same for few tokens and
# many. A maximum finds a single wrong token, but in low precision it has to be wide.
INVARIANTS: Mapping[str, Invariant] = {
    "first_ratio_deviation": Invariant(1e-3, 1.0, _RATIO),
    "first_approx_kl": Invariant(1e-8, 1e-2, _RATIO),
    "initial_kl": Invariant(
        1e-8,
        1e-2,
        "the KL is not 0 at iteration 0: policy and reference are not the same network, or are not computed alike; "
        "look at what each was loaded from",
    ),
    "sampler_deviation": Invariant(1e-3, 1.0, _SAMPLER),
    "sampler_kl": Invariant(1e-8, 1e-2, _SAMPLER),
    "mask_mismatches": Invariant(
        0.0,
        0.0,
        "masks, segments or positions that the update learns from disagree with the tokens; look at the sampler's, "
        "and at what is done to episodes between rollout and update",
    ),
    "score_read_error": Invariant(
        1e-3,
        1e-3,
        "the score was read at another token than the last that the policy produced; look at episode.at_last_token",
    ),
    "reward_placement_error": Invariant(
        1e-3,
        1e-3,
        "the score does not stand at the last token of the response, or the KL penalty not at each of its tokens; "
        "look at losses.kl_rewards",
    ),
    "frozen_changes": Invariant(
        0.0,
        0.0,
        "weights that are only read, those of the reference policy or of the reward model, are not what they were "
        "when the stage began; look for arrays that are donated or written in place",
    ),
}


def precision(dtype: str) -> Precision:
    """What products of matrices keep on this machine: "float32", all of its bits, or "low", fewer.

    Not only where networks compute in bfloat16: TPUs, and GPUs that have TensorFloat32, round the factors of
    float32 too, unless jax_default_matmul_precision is "highest". So it is tried, with a number that
    10 bits cannot tell from 1.

    Args:
      dtype: what the networks compute in, such as "float32".
    """
    fine = 1 + 2.0**-12
    product = jnp.full((256, 256), fine, dtype) @ jnp.eye(256, dtype=dtype)
    return "float32" if float(product[0, 0]) == fine else "low"


def violations(values: Mapping[str, float], precision: Precision) -> list[str]:
    """What does not hold, one line each.

    Args:
      values: metrics by name; those that are no invariants have to be finite only.
      precision: which limits are meant.
    """
    found = []
    for name, value in values.items():
        invariant = INVARIANTS.get(name)
        if not math.isfinite(value):
            found.append(
                f"{name}: expected a finite number, found {value}: a network, its input or its loss overflowed"
            )
        elif invariant is not None:
            limit = invariant.limit if precision == "float32" else invariant.low_precision_limit
            if value > limit:
                found.append(f"{name}: expected at most {limit:g}, found {value:.3g}: {invariant.meaning}")
    return found


def enforce(place: str, values: Mapping[str, float], *, precision: Precision, action: str) -> None:
    """Stops or warns where an invariant does not hold.

    Args:
      place: the stage and step, to begin the line with.
      values: see `violations`.
      precision: see `violations`.
      action: "stop" or "warn".

    Raises:
      InvariantError: what does not hold, unless the action is to warn.
    """
    found = violations(values, precision)
    if found and action == "stop":
        raise InvariantError("; ".join(f"{place}: {line}" for line in found))
    for line in found:
        print(f"warning: {place}: {line}")
