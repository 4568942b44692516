"""The host's side of training: batches in, metrics and checkpoints out, resumable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from instructjax import files
from instructjax.data import pipeline
from instructjax.errors import Interrupted, RunError, TokenizerError
from instructjax.runs import digest, interruption, processes, profile
from instructjax.runs.best import Best
from instructjax.runs.between_steps import BetweenSteps
from instructjax.runs.callbacks import Callbacks, State
from instructjax.runs.checkpoint import Checkpoints, Resumable
from instructjax.runs.reporter import CheckMetrics, Reporter, Throttled, unpack
from instructjax.runs.schedule import Schedule
from instructjax.runs.speed import Matmuls
from instructjax.training.metrics import Metrics


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
        outputs = directory, schedule.steps, done, window, started, check_metrics, matmuls
        reporter = stack.enter_context(processes.each(lambda: Reporter(*outputs, owed=owed, writers=callbacks.writers)))
        made = stack.enter_context(
            profile.steps_profiled(files.local_folder(directory) / "profile", schedule.profile_steps)
        )
        frozen = digest.digests(constants)
        between = BetweenSteps(
            name=directory.name,
            schedule=schedule,
            callbacks=callbacks,
            meta=meta,
            iterator=iterator,
            checkpoints=checkpoints,
            reporter=reporter,
            best=Best(directory, callbacks.best, checkpoints, done),
            draw=Throttled(callbacks.draw, reporter.clock) if callbacks.draw and processes.is_first() else None,
            requested=requested,
            count_changes=lambda: _changes(frozen, constants),
        )
        between.measure_start(state, done, owed)
        for number in range(done + 1, schedule.steps + 1):
            batch, prepared = between.next_batch(number, state, key)
            state, metrics = step(state, batch, key, *constants)
            made(metrics)
            reporter.add(metrics | prepared)
            saving, failure = between.measure(number, state)
            if number == schedule.steps and callbacks.finish:
                checkpoints.wait()
                state = callbacks.finish(state)
            if saving:
                between.save(number, state, failure)
        checkpoints.wait()
        signal = between.signal or requested(True)  # since the last step was made
        cost = reporter.clock.summary()
    processes.first(lambda: files.write_json(summary, {"steps": schedule.steps, **cost}))
    if signal:
        raise Interrupted(f"{directory.name}: stopped by {signal} after its last step, which is saved")


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
