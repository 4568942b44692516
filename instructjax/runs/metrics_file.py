"""Writes and reads the metrics of a run: one line per reported step, as JSON lines and in TensorBoard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from instructjax import files, warning_log
from instructjax.errors import RecordError
from instructjax.runs.tensorboard import EventFile


class Writer(Protocol):
    """Takes the metrics of a run, one line for each reported step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the scalars of a step by name."""

    def flush(self) -> None:
        """Returns when the lines are where they would survive the end of this process."""

    def close(self) -> None:
        """Ends the writer."""


class MetricsWriter:
    """Writes metrics to `WORKDIR/metrics.jsonl` and `WORKDIR/tensorboard`, and hands them to other writers.

    A context manager. In a run of several processes, only the first one writes.

    Attributes:
      path: the file of JSON lines: {"step": 10, "loss": 0.125, ...}.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        first_step: int = 0,
        others: Callable[[bool], Sequence[Writer]] | None = None,
    ):
        """Opens the outputs, and creates the directory if needed.

        Args:
          workdir: the run's directory.
          first_step: the first step that will be written. Lines of it and of later steps are
            removed, because those steps are repeated. 0 starts a new file.
          others: `others(resumes)` opens further writers. They get each step once: not those that are repeated.
        """
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / "metrics.jsonl"
        found = read(self.path) if first_step else []
        kept = [line for line in found if line["step"] < first_step]
        self._repeated = found[-1]["step"] if found else -1  # the last step that other writers may have
        self._last: dict[str, Any] = {}
        for line in kept:
            self._last.update(line)
        content = "".join(json.dumps(line) + "\n" for line in kept).encode()
        self._file = files.GrowingFile(self.path, content, warn=warning_log.warn)
        self._events = EventFile(workdir / "tensorboard", first_step=first_step)
        self._others = others(first_step > 0) if others else ()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a line. It is in both outputs when this returns or, if they are in a bucket, after `flush`.

        Args:
          step: the number of updates so far; larger than at the last call.
          scalars: numbers by name. A number that is not finite is written as NaN or
            Infinity, which `read` can read.

        Raises:
          ValueError: the step has already been written, or a scalar is named "step".
        """
        if "step" in scalars:
            raise ValueError('"step" is the name of the step, not of a metric')
        if step <= self._last.get("step", -1):
            raise ValueError(f"{self.path}: expected a step after {self._last['step']}, found {step}")
        line = {"step": step, **{name: rounded(value) for name, value in scalars.items()}}
        self._last.update(line)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._events.write(step, scalars)
        for writer in self._others if step > self._repeated else ():
            writer.write(step, scalars)

    def last(self, name: str) -> float | None:
        """Returns the newest value of a metric, even from before the run was resumed; None if there is none."""
        return self._last.get(name)

    def flush(self) -> None:
        """Returns when all lines are in the outputs."""
        self._file.flush()
        self._events.flush()
        for writer in self._others:
            writer.flush()

    def close(self) -> None:
        """Closes the outputs, each of them even if another one fails."""
        with contextlib.ExitStack() as stack:  # the last one first
            for writer in self._others:
                stack.callback(writer.close)
            stack.callback(self._events.close)
            stack.callback(self._file.close)


class NullWriter:
    """A `MetricsWriter` that writes nothing, for the processes other than the first."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""

    def last(self, name: str) -> None:
        """Returns None."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a `metrics.jsonl`, even while its run is active.

    An incomplete last line, which an interrupted run may leave, is ignored.

    Returns:
      The lines in order, each a mapping of names to numbers with "step".

    Raises:
      RecordError: there is no such file, or a line is not such a mapping.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise RecordError(f"{path}: expected a file of metrics, found no such file")
    complete, _, _ = path.read_bytes().decode(errors="replace").rpartition("\n")
    lines = []
    for number, text in enumerate(complete.split("\n") if complete else [], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}:{number}: expected a JSON object, found {text[:60]!r} ({error})") from None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise RecordError(f"{path}:{number}: step: expected a JSON object with a step, found {text[:60]!r}")
        lines.append(line)
    return lines


def rounded(value: float) -> float:
    """Rounds a number to the six digits that a line has."""
    return float(f"{float(value):.6g}")
