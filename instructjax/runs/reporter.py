"""The metrics of a run, from the device to the checks, the file and the progress bar."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from instructjax.errors import WorkdirError
from instructjax.runs import processes, progress
from instructjax.runs.metrics_file import MetricsWriter, NullWriter, Writer
from instructjax.runs.speed import Matmuls, Speed, Window
from instructjax.training.metrics import Maximum, Mean, Metrics, compute

CheckMetrics = Callable[[str, Mapping[str, float]], None]

DRAWING = 50  # seconds of training for each second of drawing
SHOWN = ("loss", "accuracy", "reward", "kl")  # metrics next to the progress bar


class Reporter:
    """Checks, writes and shows metrics, one line for each window of steps.

    A context manager. In a run of several processes, only the first one writes and shows.

    Attributes:
      window: the metrics of the steps since the last line; the next line is their mean.
      clock: the time that the run has taken.
      speed: counts what the batches of the window hold.
    """

    def __init__(
        self,
        directory: epath.Path,
        steps: int,
        done: int,
        window: list[Metrics],
        started: float,
        check_metrics: CheckMetrics,
        matmuls: Matmuls | None = None,
        *,
        owed: bool = False,
        writers: Callable[[bool], Sequence[Writer]] | None = None,
    ):
        """Opens the outputs.

        Args:
          directory: WORKDIR/STAGE; its name labels the progress bar and the checks.
          steps: the number of the last step.
          done: the step that the run continues from, 0 for a new run.
          window: the metrics since the last line before that step.
          started: see `Clock`.
          check_metrics: see `loop.Callbacks`.
          matmuls: of a step, for MFU.
          owed: whether the line of the step `done` is still to be written.
          writers: opens further writers of the metrics; see `MetricsWriter`.
        """
        self.window = window
        # The step, the metrics and the counts of a line that is not yet read.
        self._pending: tuple[int, list[Metrics], Window] | None = None
        self._name, self._check_metrics = directory.name, check_metrics
        first_step = done if owed or not done else done + 1
        self._writer = (
            MetricsWriter(directory, first_step=first_step, others=writers) if processes.is_first() else NullWriter()
        )
        self._bar = progress.Bar(directory.name, steps, "step", done=done, stage=True)
        self.clock = Clock(started, self._writer.last("wall_seconds"))
        self.speed = Speed(matmuls)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        # An upload that fails does not replace the error that ended the run.
        with contextlib.suppress(WorkdirError) if kind else contextlib.nullcontext():
            self._writer.close()

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of a step that was started, and reports the line that `report_later` left.

        This way the host reads a line while the devices compute the next step.
        """
        if self.clock.first_step_seconds is None:
            self.clock.note_step(metrics)
            self.speed.restart()  # compilation is not counted
            self._bar.measure(self._bar.n + 1)  # the remaining time does not count what the first step compiled
        self.report_pending()
        self.window.append(metrics)

    def report_pending(self) -> None:
        """Reports the line that `report_later` left, if it left one."""
        if self._pending:
            (number, window, counted), self._pending = self._pending, None
            values = compute(jax.device_get(window))
            self.speed.arrived()
            self._line(number, values, counted)

    def read(self) -> dict[str, float]:
        """Waits for the metrics of the window, and returns their values."""
        self.window = jax.device_get(self.window)
        self.speed.arrived()
        return compute(self.window)

    def report(
        self, step: int, values: Mapping[str, float], *, changes: Mapping[str, float] | None = None, line: bool = True
    ) -> None:
        """Checks values, and writes and shows them as a line.

        Args:
          step: the step of the values.
          values: metrics by name.
          changes: further values, which are checked only.
          line: False checks the values only, and keeps the window.

        Raises:
          RunError: of `check_metrics`; nothing is written.
        """
        if line:
            self.window = []
            self._line(step, values, self.speed.cut(), changes)
        else:
            self._check(step, values, changes)

    def report_later(self, step: int) -> None:
        """Leaves the line of this step to the next `add`, and begins a new window."""
        self._pending, self.window = (step, self.window, self.speed.cut()), []

    def _line(
        self, step: int, values: Mapping[str, float], counted: Window, changes: Mapping[str, float] | None = None
    ) -> None:
        self._check(step, values, changes)
        self.write(step, {**values, **self.speed.values(counted, values)})
        self._bar.set_postfix({k: f"{values[k]:.3g}" for k in SHOWN if k in values})

    def _check(self, step: int, values: Mapping[str, float], changes: Mapping[str, float] | None) -> None:
        self._check_metrics(f"{self._name}, step {step}", {**values, **(changes or {})})
        self._bar.measure(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line unchecked."""
        self._writer.write(step, {**values, "wall_seconds": self.clock.seconds()})

    def flush(self) -> None:
        """Returns when all lines are in the files: a checkpoint is saved only after the lines before it."""
        self._writer.flush()

    def advance(self) -> None:
        """Moves the progress bar by a step."""
        self._bar.update()


class Clock:
    """The seconds of training, over all the times that a run was started.

    Attributes:
      first_step_seconds: from the start to the end of the first step of this process; None before it.
    """

    def __init__(self, started: float, before: float | None):
        """Starts the clock.

        Args:
          started: the monotonic time at which this process started the run.
          before: the seconds of training before that.
        """
        self._started = started
        self._zero = time.monotonic() - (before or 0.0)
        self.first_step_seconds: float | None = None

    def seconds(self) -> float:
        """Returns the seconds of training."""
        return time.monotonic() - self._zero

    def summary(self) -> dict[str, float | None]:
        """Returns both times, rounded, for `summary.json`."""
        first = self.first_step_seconds
        return {"wall_seconds": round(self.seconds(), 3), "first_step_seconds": first and round(first, 3)}

    def note_step(self, metrics: Metrics) -> None:
        """Waits for the first step, to measure it; later steps are not waited for."""
        if self.first_step_seconds is None:
            jax.block_until_ready(metrics)
            self.first_step_seconds = time.monotonic() - self._started


class Throttled:
    """Calls a function only while its calls take less than one fiftieth of the time."""

    def __init__(self, function: Callable[[], None], clock: Clock):
        """Takes the function and the clock of the run."""
        self._function, self._clock, self._next = function, clock, 0.0

    def __call__(self, *, always: bool = False) -> None:
        """Calls the function if its share of the time allows it; `always` calls it in any case."""
        start = self._clock.seconds()
        if always or start >= self._next:
            self._function()
            end = self._clock.seconds()
            self._next = end + DRAWING * (end - start)


def pack(window: list[Metrics]) -> list[dict[str, Any]]:
    """Returns metrics on the host as JSON: [total, weight] or {"maximum": value} by name."""
    return [
        {
            name: {"maximum": float(metric.value)}
            if isinstance(metric, Maximum)
            else [float(metric.total), float(metric.weight)]
            for name, metric in metrics.items()
        }
        for metrics in window
    ]


def unpack(packed: list[dict[str, Any]]) -> list[Metrics]:
    """Undoes `pack`."""
    return [
        {
            name: Maximum(np.float64(metric["maximum"])) if isinstance(metric, dict) else Mean(*map(np.float64, metric))
            for name, metric in metrics.items()
        }
        for metrics in packed
    ]
