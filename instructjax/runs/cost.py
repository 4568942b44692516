"""The cost of a run: seconds and peak memory by stage, in WORKDIR/cost.json."""

from __future__ import annotations

import contextlib
import pathlib
import re
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import InputError
from instructjax.runs import folder, processes

Spent = dict[str, dict[str, float]]  # {"sft": {"seconds": 12.5, "peak_rss_gib": 0.8}}


@contextlib.contextmanager
def timed(workdir: epath.PathLike, name: str) -> Iterator[None]:
    """Adds the seconds and the peak memory of a block to WORKDIR/cost.json.

    Nothing is added if the block leaves a finished stage WORKDIR/NAME as it was, or raises an InputError before the
    stage has opened its metrics: then no work was done.

    Args:
      workdir: the run's folder.
      name: the stage whose work the block does.

    Raises:
      WorkdirError: see `check`.
    """
    start = time.monotonic()
    before, opened, refused = folder.summary(workdir, name), _metrics_of(workdir, name), False
    check(workdir)
    try:
        yield
    except InputError:
        refused = _metrics_of(workdir, name) == opened
        raise
    finally:  # an interrupted run has cost something too
        worked = before is None or folder.summary(workdir, name) != before
        if worked and not refused and processes.is_first():
            _add(workdir, name, time.monotonic() - start)


def _metrics_of(workdir: epath.PathLike, name: str) -> Any:
    """Returns a value that changes when a stage opens its metrics.jsonl, which rewrites the file, or adds a line."""
    path = folder.stage_directory(workdir, name) / "metrics.jsonl"
    if not files.exists(path):
        return None
    if files.is_bucket(path):
        return path.stat().mtime
    found = pathlib.Path(path).stat()
    return found.st_ino, found.st_mtime_ns


def check(workdir: epath.PathLike) -> None:
    """Raises WorkdirError if WORKDIR/cost.json is damaged. Call it before the work, so that no work is lost."""
    _read(workdir)


def total(workdir: epath.PathLike, **seconds: float) -> tuple[dict[str, float], float]:
    """Returns the seconds by stage with their total, and the peak memory in GiB over all stages.

    Args:
      workdir: the run's folder.
      **seconds: of stages that are not in WORKDIR/cost.json.
    """
    spent = _read(workdir)
    wall = {stage: entry["seconds"] for stage, entry in spent.items()} | seconds
    wall["total"] = sum(wall.values())
    peak = max([_peak_rss_gib(), *(entry["peak_rss_gib"] for entry in spent.values())])
    return {stage: round(value, 1) for stage, value in wall.items()}, round(peak, 3)


def _read(workdir: epath.PathLike) -> Spent:
    path = epath.Path(workdir) / "cost.json"
    return files.read_json(path) if files.exists(path) else {}


def _add(workdir: epath.PathLike, name: str, seconds: float) -> None:
    path, spent = epath.Path(workdir) / "cost.json", _read(workdir)
    before = spent.get(name, {"seconds": 0.0, "peak_rss_gib": 0.0})
    spent[name] = {
        "seconds": before["seconds"] + seconds,
        "peak_rss_gib": max(before["peak_rss_gib"], _peak_rss_gib()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, spent)


def _peak_rss_gib() -> float:
    """Returns the peak resident memory of this process.

    On Linux, `getrusage` starts from the peak of the parent process; VmHWM does not.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(peak[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
