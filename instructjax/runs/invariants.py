"""Invariants: limits on metrics that must hold in every run.

Bugs in reinforcement learning are silent. If the reward is read at a pad token, the curves
look as if a hyperparameter were bad. So if an invariant does not hold, the run stops before
it saves, and the error explains what that means. See docs/invariants.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp

from instructjax import warning_log
from instructjax.errors import InvariantError

Precision = Literal["float32", "low"]


@dataclasses.dataclass(frozen=True)
class Invariant:
    """The limit of a metric.

    Attributes:
      limit: the largest allowed value if matmuls keep the 24 bits of float32.
      low_precision_limit: the largest allowed value otherwise; see `precision`.
        docs/invariants.md explains how both were chosen.
      meaning: what a larger value means, and where to look.
    """

    limit: float
    low_precision_limit: float
    meaning: str


_RATIO = (
    "the policy's ratio is not 1 before its first update: the update and the rollout compute different "
    "log-probabilities; look for dropout, temperature, positions, masks, or weights that changed in between"
)
_SAMPLER = (
    "tokens were not sampled from the distribution that the training forward computes; look at the sampler's cache, "
    "positions, mask and temperature, and look for old weights in it"
)

# A KL is the mean of (log-ratio)² / 2 over tokens, in nats. It is never negative and does not depend on the number
# of tokens. A maximum finds a single wrong token, but its limit must be wide in low precision.
INVARIANTS: Mapping[str, Invariant] = {
    "first_ratio_deviation": Invariant(1e-3, 1.0, _RATIO),
    "first_approx_kl": Invariant(1e-8, 1e-2, _RATIO),
    "initial_kl": Invariant(
        1e-8,
        1e-2,
        "the KL is not 0 at iteration 0: policy and reference have different weights, or are computed differently; "
        "look at what each was loaded from",
    ),
    "sampler_deviation": Invariant(1e-3, 1.0, _SAMPLER),
    "sampler_kl": Invariant(1e-8, 1e-2, _SAMPLER),
    "mask_mismatches": Invariant(
        0.0,
        0.0,
        "masks, segments or positions of the update disagree with the tokens; look at the sampler, and at what is "
        "done to episodes between rollout and update",
    ),
    "score_read_error": Invariant(
        1e-3,
        1e-3,
        "the score was not read at the last token that the policy produced; look at episode.at_last_token",
    ),
    "reward_placement_error": Invariant(
        1e-3,
        1e-3,
        "the score is not at the last token of the response, or the KL penalty is not at each of its tokens; "
        "look at losses.kl_rewards",
    ),
    "frozen_changes": Invariant(
        0.0,
        0.0,
        "frozen weights, of the reference policy or of the reward model, have changed since the stage began; look for "
        "arrays that are donated or written in place",
    ),
}


def precision(dtype: str) -> Precision:
    """Measures the precision of matmuls on this machine: "float32" if they keep all bits, else "low".

    The dtype is not enough. TPUs, and GPUs with TensorFloat32, also round the inputs of float32 matmuls, unless
    jax_default_matmul_precision is "highest". So this multiplies a number that rounds to 1 in 10 bits.

    Args:
      dtype: the dtype of the networks' matmuls, such as "float32".
    """
    fine = 1 + 2.0**-12
    product = jnp.full((256, 256), fine, dtype) @ jnp.eye(256, dtype=dtype)
    return "float32" if float(product[0, 0]) == fine else "low"


def violations(values: Mapping[str, float], precision: Precision, sampler: Precision | None = None) -> list[str]:
    """Returns a line for each metric that is not finite or breaks an invariant.

    Args:
      values: metrics by name; metrics without an invariant need only be finite.
      precision: which limits to use.
      sampler: which limits to use for the invariants of the sampler, if it has another precision.
    """
    found = []
    for name, value in values.items():
        invariant = INVARIANTS.get(name)
        if not math.isfinite(value):
            found.append(
                f"{name}: expected a finite number, found {value}: a network, its input or its loss overflowed"
            )
        elif invariant is not None:
            applies = sampler if sampler and name.startswith("sampler_") else precision
            limit = invariant.limit if applies == "float32" else invariant.low_precision_limit
            if value > limit:
                found.append(f"{name}: expected at most {limit:g}, found {value:.3g}: {invariant.meaning}")
    return found


def enforce(
    place: str, values: Mapping[str, float], *, precision: Precision, action: str, sampler: Precision | None = None
) -> None:
    """Raises an error or prints a warning if an invariant does not hold.

    Args:
      place: the stage and step, with which the message begins.
      values: see `violations`.
      precision: see `violations`.
      action: "stop" or "warn".
      sampler: see `violations`.

    Raises:
      InvariantError: all violations, if the action is to stop.
    """
    found = violations(values, precision, sampler)
    if found and action == "stop":
        raise InvariantError("; ".join(f"{place}: {line}" for line in found))
    for line in found:
        warning_log.warn(f"{place}: {line}")
