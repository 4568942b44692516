"""What the host does between the steps of a run: it takes batches, measures states, saves them and notices signals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic

import jax

from instructjax.errors import InputError, Interrupted
from instructjax.runs import processes
from instructjax.runs.best import Best
from instructjax.runs.callbacks import Callbacks, Failure, State
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.interruption import Requested
from instructjax.runs.reporter import Reporter, Throttled, pack
from instructjax.runs.schedule import Schedule
from instructjax.training.metrics import Metrics


@dataclasses.dataclass
class BetweenSteps(Generic[State]):
    """The host's work between the steps of one run.

    Attributes:
      name: the stage's, for errors.
      schedule: see `loop.run`, also for `callbacks` and `meta`.
      callbacks: evaluation and preparation.
      meta: saved with each checkpoint.
      iterator: of the batches; its position is saved.
      checkpoints: where states are saved.
      reporter: where metrics go.
      best: which state is the best one so far.
      draw: draws the curves; None in other processes than the first.
      requested: see `interruption.requests`.
      count_changes: returns further values to check after the last step.
      signal: that stops the run after the current step; None if there is none.
    """

    name: str
    schedule: Schedule
    callbacks: Callbacks[State]
    meta: Mapping[str, Any]
    iterator: Any
    checkpoints: Checkpoints
    reporter: Reporter
    best: Best
    draw: Throttled | None
    requested: Requested
    count_changes: Callable[[], dict[str, float]]
    signal: str | None = None

    def measure_start(self, state: State, done: int, owed: bool) -> None:
        """Evaluates the initial state, or again the one whose evaluation failed, and writes its line.

        Args:
          state: after `done` steps.
          done: the step that the run continues from.
          owed: whether the evaluation of that step has failed.

        Raises:
          InputError, Interrupted: of the evaluation, with what is saved.
        """
        if self.callbacks.evaluate is None or (done and not owed):
            return
        values, failure = _attempt(self.callbacks.evaluate, state)
        if failure:
            raise self._with_saved(failure, done)
        if owed:
            self.best.note(done, values)
            self.reporter.report(done, self.reporter.read() | values)
        else:
            self.reporter.write(0, values)

    def next_batch(self, number: int, state: State, key: jax.Array) -> tuple[Any, Metrics]:
        """Returns the prepared batch of step `number`, and its metrics.

        Raises:
          InputError, Interrupted: of `prepare`, after the state before the step was saved.
        """
        prepare, iterator = self.callbacks.prepare, self.iterator
        position = iterator.get_state() if prepare else None
        with self.reporter.speed.waiting():
            batch = next(iterator)
        self.reporter.speed.count(batch, number)
        if prepare is None:
            return batch, {}
        try:
            return prepare(number, state, batch, key)
        except (InputError, Interrupted) as error:
            iterator.set_state(position)
            self._save_before(number, state)
            raise self._with_saved(error, number - 1) from None

    def measure(self, number: int, state: State) -> tuple[bool, Failure | None]:
        """Notices signals, evaluates a state if that is due, and reports the metrics.

        Args:
          number: the step that was made.
          state: after the step.

        Returns:
          Whether the state must be saved, and the error of the evaluation, for `save`.
        """
        due, failure = self.schedule.due(number), None
        self.signal = self.requested(due.report)
        saving = due.save or bool(self.signal)
        if due.evaluate or saving:
            values = self.reporter.read()
            if due.evaluate and self.callbacks.evaluate:
                measured, failure = _attempt(self.callbacks.evaluate, state)
                values |= measured
                saving = self.best.note(number, measured) or saving or bool(failure)
            changes = self.count_changes() if due.last else {}
            self.reporter.report(number, values, changes=changes, line=due.report and not failure)
            processes.first(self.reporter.flush)
        elif due.report:
            self.reporter.report_later(number)
        if self.draw and due.evaluate:
            self.draw(always=due.last)
        self.reporter.advance()
        return saving, failure

    def save(self, number: int, state: State, failure: Failure | None) -> None:
        """Saves the state after step `number`.

        Raises:
          InputError, Interrupted: `failure`, or the run was asked to stop before its last step.
        """
        self._write(number, state, owed=bool(failure))
        if failure:
            self.checkpoints.wait()
            raise self._with_saved(failure, number)
        if self.signal and number < self.schedule.steps:
            self.checkpoints.wait()
            raise self._with_saved(Interrupted(self.signal), number)

    def _save_before(self, number: int, state: State) -> None:
        """Saves the state before a step that failed on the host, unless it is already saved or is the initial one."""
        self.reporter.report_pending()
        if self.reporter.window:
            self.reporter.report(number - 1, self.reporter.read(), line=False)
        processes.first(self.reporter.flush)
        if number > 1:
            self._write(number - 1, state, owed=False)
        self.checkpoints.wait()

    def _write(self, step: int, state: State, *, owed: bool) -> None:
        meta = {**self.meta, "window": pack(self.reporter.window), "owed": owed}
        self.checkpoints.save(step, state, iterator=self.iterator, meta=meta)

    def _with_saved(self, error: Failure, step: int) -> Failure:
        """Adds to the message of a callback's error which step is saved."""
        if isinstance(error, Interrupted):
            after = f"after step {step} of {self.schedule.steps}, which is saved"
            return Interrupted(
                f"{self.name}: stopped by {error} {after if step else 'before the end of its first step'}"
            )
        return type(error)(f"{error}; step {step} is saved" if step else f"{error}; no step is saved")


def _attempt(evaluate: Callable[[State], dict[str, float]], state: State) -> tuple[dict[str, float], Failure | None]:
    """Returns what `evaluate` measured and None, or nothing and the error, after which the run saves and stops.

    Any other error ends the run without a save. An error of one process is one of the same kind in all of them; see
    `processes.each`.
    """
    try:
        return evaluate(state), None
    except (InputError, Interrupted) as error:
        return {}, error
