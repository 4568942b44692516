"""All checks of a recipe's metrics: invariants, which hold in every run, and the recipe's own guards."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from instructjax.runs import guards, invariants
from instructjax.runs.reporter import CheckMetrics


def check_metrics(config: ml_collections.ConfigDict) -> CheckMetrics:
    """Returns `check_metrics(place, values)` for `loop.Callbacks`.

    It raises an InvariantError or a DivergenceError, or prints a warning, as the recipe's `invariants` and
    `guards.action` say.

    Args:
      config: a whole recipe.
    """
    precision = invariants.precision(config.model.matmul_dtype or config.model.dtype)
    limits = guards.from_config(config.guards)

    def check(place: str, values: Mapping[str, float]) -> None:
        invariants.enforce(place, values, precision=precision, action=config.invariants)
        guards.enforce(place, values, limits, config.guards.action)

    return check
