"""What a run calls besides its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import jax

from instructjax.errors import InputError, Interrupted
from instructjax.runs.metrics_file import Writer
from instructjax.runs.reporter import CheckMetrics
from instructjax.training.metrics import Metrics

State = TypeVar("State")  # a pytree of arrays with an int32 scalar `step`
Failure: TypeAlias = InputError | Interrupted  # of a callback; the run saves and stops
# prepare(number, state, batch, key) -> (another batch, metrics)
Prepare: TypeAlias = Callable[[int, Any, Any, jax.Array], tuple[Any, Metrics]]


@dataclasses.dataclass(frozen=True)
class Callbacks(Generic[State]):
    """What a run calls besides its step; each may be None.

    Attributes:
      prepare: `prepare(number, state, batch, key)` does the part of step `number` that runs on the host. It returns
        the batch that the step takes, and further metrics. It may raise InputError or Interrupted and leaves the state
        as it is; then the state before the step is saved.
      evaluate: measures a state. It is called as the schedule says, before the first step and after the
        last; its values are logged with the metrics. If it raises InputError or Interrupted, the state is saved.
      check_metrics: `check_metrics(place, values)` raises a RunError if metrics show that something is
        wrong. It is called before they are written and before anything is saved; `place` is "ppo, step 20".
        After the last step the values include "frozen_changes", the number of arrays of `constants` that
        changed.
      draw: draws the curves so far. It is called after evaluations, unless it has taken more than one fiftieth of
        the time; after the last step it is always called.
      finish: changes the last state before it is saved. All earlier checkpoints can be read by then.
      best: the metric of `evaluate` whose largest value marks the best state. Its checkpoint is saved when it is
        measured, and kept in addition to the newest ones. With "", none is kept as the best.
      writers: opens further writers of the metrics, in the first process; see `metrics_file.MetricsWriter`.
    """

    prepare: Prepare | None = None
    evaluate: Callable[[State], dict[str, float]] | None = None
    check_metrics: CheckMetrics | None = None
    draw: Callable[[], None] | None = None
    finish: Callable[[State], State] | None = None
    best: str = ""
    writers: Callable[[bool], Sequence[Writer]] | None = None
