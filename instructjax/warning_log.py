"""Warnings: printed when they occur, and kept in WORKDIR/warnings.log for people who did not see them printed."""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Iterator

import jax
from etils import epath

from instructjax import files
from instructjax.errors import WorkdirError

NAME = "warnings.log"

_folders: list[epath.Path] = []  # of the runs of this process that keep warnings; the last one is the current one
_lock = threading.Lock()  # reward functions warn from their own threads


def warn(message: str) -> None:
    """Prints "warning: MESSAGE", and appends the message with its time (UTC) to the log of the current run, if any.

    Of several processes, only the first appends. A log that cannot be written does not stop a run: the warning
    is printed in any case.
    """
    print(f"warning: {message}")
    with _lock, contextlib.suppress(OSError, WorkdirError):
        if _folders and jax.process_index() == 0:  # all processes of a run write to one folder
            now = datetime.datetime.now(datetime.UTC)
            _append(_folders[-1] / NAME, f"{now:%Y-%m-%d %H:%M:%S} {' '.join(message.split())}\n")


@contextlib.contextmanager
def kept_in(workdir: epath.Path) -> Iterator[None]:
    """Keeps the warnings of a block in WORKDIR/warnings.log."""
    _folders.append(workdir)
    try:
        yield
    finally:
        _folders.pop()


def read(workdir: epath.PathLike) -> list[str]:
    """Reads the lines of WORKDIR/warnings.log, the oldest first; [] if there is none."""
    path = epath.Path(workdir) / NAME
    return path.read_text().splitlines() if files.exists(path) else []


def _append(path: epath.Path, line: str) -> None:
    if files.is_bucket(path):  # which cannot append
        files.write_text(path, (path.read_text() if files.exists(path) else "") + line)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line)
