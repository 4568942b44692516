"""The host's side of training: batches in, metrics and checkpoints out, resumable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm
from etils import epath

from instructjax import files
from instructjax.data import pipeline
from instructjax.errors import RunError, TokenizerError
from instructjax.recipe import check
from instructjax.runs import digest, interruption, processes
from instructjax.runs import metrics_file as metrics_lib
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.interruption import Interrupted
from instructjax.training.step import Maximum, Metrics

DRAWING = 50  # seconds of training for each second of drawing
SHOWN = ("loss", "accuracy", "reward", "kl")  # metrics beside the progress bar


def run(
    name: str,
    step: Callable[..., tuple[Any, Metrics]],
    state: Any,
    batches: Callable[[], pipeline.Batches],
    key: jax.Array,
    *,
    steps: int,
    directory: epath.Path,
    meta: dict[str, Any],
    log: ml_collections.ConfigDict,
    constants: Sequence[Any] = (),
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    finish: Callable[[Any], Any] | None = None,
    keep_steps: Sequence[int] = (),
    judge: Callable[[str, dict[str, float]], None] | None = None,
    draw: Callable[[], None] | None = None,
) -> None:
    """Trains to the last step, from the last checkpoint if there is one.

    A run that was interrupted and started again makes the same steps on the same
    batches as one that was not; a run that is finished does nothing. Asked by SIGTERM or
    SIGINT to stop, a run saves the step it is in and leaves.

    Devices need not wait for the host: batches are made ahead, a line of metrics is read while
    they are at the step that follows, and checkpoints are written in the background. (In a run of
    several processes the host does wait at each line, where they agree about signals.)

    Args:
      name: what to call the run in the progress bar.
      step: a compiled `step(state, batch, key, *constants) -> (state, metrics)`.
      state: a pytree with an int32 scalar `step`, as it is before the first step; it is
        donated to the run.
      batches: makes the grain dataset, if there is something to train; its iterator's state is saved with
        the checkpoints.
      key: the run's root key; the step folds its number in.
      steps: how many steps to make.
      directory: receives `checkpoints/`, `metrics.jsonl` and `summary.json`, in which `first_step_seconds` is
        the time from this call to the end of the first step that it made.
      meta: saved with each checkpoint: model shape, tokenizer, config.
      log: the `log` or `ppo_log` section of a recipe; see `recipe.check.intervals`.
      constants: further arguments of the step, such as frozen weights.
      evaluate: measures a state; called every `log.evaluate_every` steps, before the
        first and after the last, and logged with the metrics.
      finish: changes the last state before it is saved.
      keep_steps: checkpoints to keep beside the last `log.keep`.
      judge: `judge(place, values)` raises where metrics show that something is wrong, before
        they are written and before anything is saved; `place` is "NAME, step 20". After the
        last step it is given "frozen_changes", the number of arrays of `constants` that changed.
      draw: called after the lines of `log.evaluate_every` and after the last, to show the
        curves so far; in between it gets no more than one part in fifty of the time.

    Raises:
      Interrupted: the run was asked to stop, and has saved.
      RunError: of the judge; the last good checkpoint is added to what it says.
      CheckpointError: a checkpoint cannot be written, or none can be read.
      TokenizerError: the run was begun with another tokenizer than `meta` has.
    """
    check.intervals(log)
    summary = directory / "summary.json"
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        kept = {"keep": log.keep, "keep_steps": (*keep_steps, steps)}
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", **kept))
        done = checkpoints.latest_step() or 0
        if done >= steps and summary.exists():
            return
        summary.unlink(missing_ok=True)  # of a run that had fewer steps
        iterator = stack.enter_context(contextlib.closing(iter(pipeline.prefetched(batches()))))
        window: list[Metrics] = []
        if done:
            state, found = checkpoints.restore(_released(state), iterator=iterator)
            _check_tokenizer(checkpoints.directory, found, meta)
            done, window = checkpoints.latest_step(), _unpacked(found["window"])
        requested = stack.enter_context(interruption.requests())
        writer = stack.enter_context(_writer(directory, done))
        bar = stack.enter_context(_bar(name, done, steps))
        clock = _Clock(writer.last("wall_seconds"))
        frozen, drawn_until, first_step = digest.digests(constants), 0.0, None

        def report(number: int, values: dict[str, float], *, changes: Mapping[str, float] = {}, line: bool = True):
            if judge:
                with _last_checkpoint_named(checkpoints):
                    judge(f"{name}, step {number}", {**values, **changes})
            if line:
                writer.write(number, {**values, "wall_seconds": clock.seconds()})
                bar.set_postfix({k: f"{values[k]:.3g}" for k in SHOWN if k in values})

        if evaluate and not done:
            writer.write(0, {**evaluate(state), "wall_seconds": clock.seconds()})
        unread: tuple[int, list[Metrics]] | None = None  # what the next line is of
        for number in range(done + 1, steps + 1):
            state, metrics = step(state, next(iterator), key, *constants)
            if first_step is None:
                jax.block_until_ready(metrics)
                first_step = time.monotonic() - began
            if unread:
                report(unread[0], reduce(jax.device_get(unread[1])))
                unread = None
            window.append(metrics)
            last = number == steps
            reporting = last or number % log.every == 0
            signal = requested(reporting)
            measuring = last or number % log.evaluate_every == 0
            saving = last or bool(signal) or number % log.save_every == 0
            if measuring or saving:
                window = jax.device_get(window)
                values = reduce(window) | (evaluate(state) if measuring and evaluate else {})
                report(number, values, changes=_changes(frozen, constants) if last else {}, line=reporting)
            elif reporting:
                unread = number, window
            if reporting:
                window = []
            if draw and processes.is_first() and (last or (measuring and clock.seconds() >= drawn_until)):
                drawing = clock.seconds()
                draw()
                drawn_until = clock.seconds() + DRAWING * (clock.seconds() - drawing)
            bar.update()
            if last and finish:
                state = finish(state)
            if saving:
                checkpoints.save(number, state, iterator=iterator, meta={**meta, "window": _packed(window)})
            if signal and not last:
                checkpoints.wait()
                raise Interrupted(f"{name}: stopped by {signal} after step {number} of {steps}, which is saved")
        checkpoints.wait()
        cost = {"wall_seconds": round(clock.seconds(), 3), "first_step_seconds": first_step and round(first_step, 3)}
    processes.first(lambda: files.write_json(summary, {"steps": steps, **cost}))


def _check_tokenizer(directory: epath.Path, began: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other token ids; what has no tokenizer has none of them."""
    expected, found = began.get("fingerprint"), now.get("fingerprint")
    if found != expected:
        raise TokenizerError(
            f"{directory}: expected the tokenizer that the stage began with ({expected}), found {found}; "
            "choose another --workdir"
        )


def _writer(directory: epath.Path, done: int) -> contextlib.AbstractContextManager[metrics_lib.MetricsWriter]:
    """The first process writes; the others read what there was and write to nothing."""
    return metrics_lib.MetricsWriter(directory, resume_step=done) if processes.is_first() else metrics_lib.Silent()


def _bar(name: str, done: int, steps: int) -> tqdm.tqdm:
    shown = dict(desc=name, unit="step", dynamic_ncols=True, mininterval=1.0, disable=not processes.is_first())
    return tqdm.tqdm(total=steps, initial=done, **shown)


def reduce(window: Sequence[Metrics]) -> dict[str, float]:
    """The metrics of several steps as one number each: means of pairs, maxima of `Maximum`s.

    A mean over nothing (weight 0) is left out, and so is a maximum of nothing (-inf).
    """
    values = {}
    for name, first in window[0].items():
        parts = [metrics[name] for metrics in window]
        if isinstance(first, Maximum):
            if (most := float(np.max([part.value for part in parts]))) != -np.inf:
                values[name] = most
        elif weight := float(np.sum([part[1] for part in parts], dtype=np.float64)):
            values[name] = float(np.sum([part[0] for part in parts], dtype=np.float64)) / weight
    return values


def _released(state: Any) -> Any:
    """Shapes and places of a state whose memory is given back, for the one that is read in its place."""

    def release(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x.delete()
        return shape

    return jax.tree.map(release, state)


@contextlib.contextmanager
def _last_checkpoint_named(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to the error of a run that went wrong from where it could go on: nothing was saved since it did."""
    try:
        yield
    except RunError as error:
        checkpoints.wait()
        step = checkpoints.latest_step()
        good = f"the last good checkpoint is {checkpoints.directory / str(step)}" if step else "no checkpoint was saved"
        raise type(error)(f"{error}; {good}") from None


def _changes(before: dict[str, str], constants: Sequence[Any]) -> dict[str, float]:
    """How many arrays are not what they were."""
    after = digest.digests(constants)
    return {"frozen_changes": float(sum(before[place] != after[place] for place in before))}


def _packed(window: Sequence[Metrics]) -> list[dict[str, Any]]:
    """Metrics on the host as JSON: those since the last line, which the next line is the mean of."""
    return [
        {
            name: {"maximum": float(part.value)} if isinstance(part, Maximum) else [float(part[0]), float(part[1])]
            for name, part in metrics.items()
        }
        for metrics in window
    ]


def _unpacked(packed: list[dict[str, Any]]) -> list[Metrics]:
    return [
        {
            name: Maximum(np.float64(part["maximum"])) if isinstance(part, dict) else tuple(map(np.float64, part))
            for name, part in metrics.items()
        }
        for metrics in packed
    ]


class _Clock:
    """Seconds of training, over all the times that a run was started."""

    def __init__(self, before: float | None):
        self._start = time.monotonic() - (before or 0.0)

    def seconds(self) -> float:
        return time.monotonic() - self._start
