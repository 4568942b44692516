"""The host's side of training: batches in, metrics and checkpoints out, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import jax
from etils import epath

from instructjax import files
from instructjax.data import pipeline
from instructjax.errors import InputError, RunError, TokenizerError
from instructjax.runs import digest, interruption, processes, profile
from instructjax.runs.best import Best
from instructjax.runs.checkpoint import Checkpoints, Resumable
from instructjax.runs.interruption import Interrupted
from instructjax.runs.metrics_file import Writer
from instructjax.runs.reporter import CheckMetrics, Reporter, Throttled, pack, unpack
from instructjax.runs.schedule import Schedule
from instructjax.runs.speed import Matmuls, Speed
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


def run(
    step: Callable[..., tuple[State, Metrics]],
    state: State,
    batches: Callable[[], pipeline.Batches],
    key: jax.Array,
    *,
    directory: epath.Path,
    schedule: Schedule,
    meta: Mapping[str, Any],
    constants: Sequence[Any] = (),
    callbacks: Callbacks[State] | None = None,
    matmuls: Matmuls | None = None,
) -> None:
    """Trains to the last step, from the last checkpoint if there is one.

    An interrupted run that is started again makes the same steps on the same batches as an uninterrupted
    one. A finished run does nothing. If SIGTERM or SIGINT asks a run to stop, it saves the current step and
    raises Interrupted.

    Devices need not wait for the host: batches are made ahead, a line of metrics is read while the devices
    compute the next step, and checkpoints are written in the background. (In a run of several processes the
    host waits at each line, where the processes agree about SIGINT.)

    Args:
      step: a compiled `step(state, batch, key, *constants) -> (state, metrics)`.
      state: the state before the first step; it is donated to the run.
      batches: makes the grain dataset; it is called only if there is something to train. The state of its
        iterator is saved with the checkpoints.
      key: the run's root key; the step folds its number in.
      directory: WORKDIR/STAGE, which receives `checkpoints/`, `metrics.jsonl` and `summary.json`. Its name
        labels the progress bar and the errors. In the summary, `first_step_seconds` is the time from this
        call to the end of the first step that it made.
      schedule: the number of steps, and when to report, evaluate and save.
      meta: saved with each checkpoint: model shape, tokenizer, config.
      constants: further arguments of the step, such as frozen weights.
      callbacks: evaluation, checks and drawing.
      matmuls: of a step, for MFU; None if they are not known.

    Raises:
      Interrupted: the run was asked to stop, and has saved.
      InputError: of `prepare` and `evaluate`; the step that was saved is added to the message. An evaluation that
        failed is repeated first when the run resumes.
      ConfigError: the last checkpoint is of a later step than the last one of the schedule.
      RunError: of `check_metrics`; the last good checkpoint is added to the message.
      CheckpointError: a checkpoint cannot be written, or none can be read.
      TokenizerError: the run was begun with another tokenizer than that of `meta`.
    """
    started, summary = time.monotonic(), directory / "summary.json"
    callbacks = callbacks or Callbacks()
    with contextlib.ExitStack() as stack:
        kept = (*schedule.keep_steps, schedule.steps)
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep=schedule.keep, keep_steps=kept))
        schedule.check_done(directory, checkpoints.latest_step() or 0)
        if checkpoints.latest_step() == schedule.steps and summary.exists():
            return
        summary.unlink(missing_ok=True)  # of a run that had fewer steps
        iterator: Any = stack.enter_context(contextlib.closing(iter(pipeline.prefetch(batches()))))
        done, state, window, owed = _resume(checkpoints, state, iterator, meta)
        requested = stack.enter_context(interruption.requests())
        check_metrics = _with_last_checkpoint(callbacks.check_metrics, checkpoints)
        reporter = stack.enter_context(
            Reporter(
                directory,
                schedule.steps,
                done,
                window,
                started,
                check_metrics,
                matmuls,
                owed=owed,
                writers=callbacks.writers,
            )
        )
        made = stack.enter_context(
            profile.steps_profiled(files.local_folder(directory) / "profile", schedule.profile_steps)
        )
        draw = Throttled(callbacks.draw, reporter.clock) if callbacks.draw and processes.is_first() else None
        frozen, signal, failure = digest.digests(constants), None, None
        best = Best(directory, callbacks.best, checkpoints, done)
        if callbacks.evaluate and (owed or not done):
            values, failure = _attempt(callbacks.evaluate, state)
            if failure:
                raise _saved(failure, directory.name, done, schedule.steps)
            if owed:
                best.note(done, values)
                reporter.report(done, reporter.read() | values)
            else:
                reporter.write(0, values)
        for number in range(done + 1, schedule.steps + 1):
            due = schedule.due(number)
            (batch, prepared), failure = _next_batch(callbacks.prepare, number, state, iterator, key, reporter.speed)
            if failure:
                _save_before(number, state, iterator, meta, reporter, checkpoints)
                raise _saved(failure, directory.name, number - 1, schedule.steps)
            state, metrics = step(state, batch, key, *constants)
            made(metrics)
            reporter.add(metrics | prepared)
            signal = requested(due.report)
            saving = due.save or bool(signal)
            if due.evaluate or saving:
                values = reporter.read()
                if due.evaluate and callbacks.evaluate:
                    measured, failure = _attempt(callbacks.evaluate, state)
                    values |= measured
                    saving = best.note(number, measured) or saving or bool(failure)
                changes = _changes(frozen, constants) if due.last else {}
                reporter.report(number, values, changes=changes, line=due.report and not failure)
            elif due.report:
                reporter.report_later(number)
            if saving or due.evaluate:
                reporter.flush()
            if draw and due.evaluate:
                draw(always=due.last)
            reporter.advance()
            if due.last and callbacks.finish:
                checkpoints.wait()
                state = callbacks.finish(state)
            if saving:
                window = pack(reporter.window)
                saved = {**meta, "window": window, "owed": bool(failure)}
                checkpoints.save(number, state, iterator=iterator, meta=saved)
            if failure:
                checkpoints.wait()
                raise _saved(failure, directory.name, number, schedule.steps)
            if signal and not due.last:
                checkpoints.wait()
                raise Interrupted(
                    f"{directory.name}: stopped by {signal} after step {number} of {schedule.steps}, which is saved"
                )
        checkpoints.wait()
        signal = signal or requested(True)  # since the last step was made
        cost = reporter.clock.summary()
    processes.first(lambda: files.write_json(summary, {"steps": schedule.steps, **cost}))
    if signal:
        raise Interrupted(f"{directory.name}: stopped by {signal} after its last step, which is saved")


def _attempt(evaluate: Callable[[State], dict[str, float]], state: State) -> tuple[dict[str, float], Failure | None]:
    """Returns what `evaluate` measured and None, or nothing and the error, after which the run saves and stops."""
    try:
        return evaluate(state), None
    except (InputError, Interrupted) as error:
        return {}, error


def _next_batch(
    prepare: Prepare | None, number: int, state: Any, iterator: Any, key: jax.Array, speed: Speed
) -> tuple[tuple[Any, Metrics], Failure | None]:
    """Returns the prepared batch of a step and its metrics; or an error, after moving the iterator back."""
    position = iterator.get_state() if prepare else None
    with speed.waiting():
        batch = next(iterator)
    speed.count(batch, number)
    if prepare is None:
        return (batch, {}), None
    try:
        return prepare(number, state, batch, key), None
    except (InputError, Interrupted) as error:
        iterator.set_state(position)
        return (None, {}), error


def _save_before(
    number: int,
    state: State,
    iterator: Resumable,
    meta: Mapping[str, Any],
    reporter: Reporter,
    checkpoints: Checkpoints,
) -> None:
    """Saves the state before a step that failed on the host, unless it is already saved or is the initial one."""
    reporter.report_pending()
    if reporter.window:
        reporter.report(number - 1, reporter.read(), line=False)
    reporter.flush()
    if number > 1:
        window = pack(reporter.window)
        checkpoints.save(number - 1, state, iterator=iterator, meta={**meta, "window": window, "owed": False})
    checkpoints.wait()


def _saved(error: Failure, name: str, step: int, steps: int) -> Failure:
    """Adds to the message of a callback's error which step is saved."""
    if isinstance(error, Interrupted):
        saved = f"after step {step} of {steps}, which is saved" if step else "before the end of its first step"
        return Interrupted(f"{name}: stopped by {error} {saved}")
    return type(error)(f"{error}; step {step} is saved" if step else f"{error}; no step is saved")


def _resume(
    checkpoints: Checkpoints, state: State, iterator: Resumable, meta: Mapping[str, Any]
) -> tuple[int, State, list[Metrics], bool]:
    """Returns the last saved step, its state and window of metrics, and whether its evaluation is still to be made.

    Moves the iterator there. If nothing was saved, the step is 0 and the state is the given one.
    """
    if not checkpoints.latest_step():
        return 0, state, [], False
    state, found = checkpoints.restore(_release(state), iterator=iterator)
    _check_tokenizer(checkpoints.directory, found, meta)
    return checkpoints.latest_step() or 0, state, unpack(found["window"]), found.get("owed", False)


def _check_tokenizer(directory: epath.Path, began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TokenizerError if the fingerprints of two metas differ; a meta without a tokenizer has none."""
    expected, found = began.get("fingerprint"), now.get("fingerprint")
    if found != expected:
        raise TokenizerError(
            f"{directory}: expected the tokenizer that the stage began with ({expected}), found {found}; "
            "choose another --workdir"
        )


def _release(state: State) -> State:
    """Frees the memory of a state, and returns its shapes and shardings as a template to restore into."""

    def release(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x.delete()
        return shape

    return jax.tree.map(release, state)


def _with_last_checkpoint(check_metrics: CheckMetrics | None, checkpoints: Checkpoints) -> CheckMetrics:
    """Wraps `check_metrics`: its errors also name the checkpoint that the run can continue from."""

    def check(place: str, values: Mapping[str, float]) -> None:
        if check_metrics is None:
            return
        try:
            check_metrics(place, values)
        except RunError as error:  # nothing was saved since the run went wrong
            checkpoints.wait()
            step = checkpoints.latest_step()
            path = checkpoints.directory / str(step)
            good = f"the last good checkpoint is {path}" if step else "no checkpoint was saved"
            raise type(error)(f"{error}; {good}") from None

    return check


def _changes(before: Mapping[str, str], constants: Sequence[Any]) -> dict[str, float]:
    """Counts the arrays that have changed."""
    after = digest.digests(constants)
    return {"frozen_changes": float(sum(before[place] != after[place] for place in before))}
