"""All checks of a recipe's metrics: invariants, which hold in every run, and the recipe's own guards."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from instructjax import warning_log
from instructjax.runs import guards, invariants
from instructjax.runs.reporter import CheckMetrics

ERRORS = 4  # standard errors below 0 from which a KL is not due to chance
LEAST_KL = 1e-3  # nats per episode; a KL that is nearer to 0 may be negative because of rounding


def warn_of_negative_kl(place: str, values: Mapping[str, float]) -> None:
    """Warns of a KL that is clearly below 0, which a KL divergence cannot be.

    An estimate from few samples may be a little below 0. It is far below if the tokens were drawn from another
    distribution than the one whose log-probabilities were taken, for example at another temperature.

    Args:
      place: the stage and step, with which the message begins.
      values: metrics by name; each KL comes with its standard error, such as `kl` with `kl_standard_error`.
    """
    for name in ("kl", "validation_kl"):
        kl, error = values.get(name), values.get(f"{name}_standard_error")
        if kl is not None and error is not None and kl < -max(ERRORS * error, LEAST_KL):
            warning_log.warn(
                f"{place}: {name} is {kl:.4g}, more than {ERRORS} standard errors ({error:.2g}) below 0, which a KL "
                "cannot be: the answers were not drawn from the distribution whose log-probabilities are taken"
            )


def check_metrics(config: ml_collections.ConfigDict, rollout_dtype: str = "") -> CheckMetrics:
    """Returns `check_metrics(place, values)` for `loop.Callbacks`.

    It raises an InvariantError or a DivergenceError, or prints a warning, as the recipe's `invariants` and
    `guards.action` say.

    Args:
      config: a whole recipe.
      rollout_dtype: of the stage's section. If it is given, the sampler has the limits of low precision.
    """
    sampler: invariants.Precision | None = "low" if rollout_dtype else None
    precision = invariants.precision(config.model.matmul_dtype or config.model.dtype)
    limits = guards.from_config(config.guards)

    def check(place: str, values: Mapping[str, float]) -> None:
        invariants.enforce(place, values, precision=precision, action=config.invariants, sampler=sampler)
        guards.enforce(place, values, limits, config.guards.action)
        warn_of_negative_kl(place, values)

    return check
