"""A lock on a run's folder, so that only one run at a time writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import TextIO

from etils import epath

from instructjax.errors import WorkdirError


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
    """Locks the folder of a run, and creates it if needed.

    The kernel releases the lock when this process ends, however it ends. A bucket has no
    locks, so two runs in one folder of a bucket are not detected.

    Raises:
      WorkdirError: another process holds the folder, or it cannot be written to.
    """
    workdir = epath.Path(workdir)
    with contextlib.nullcontext() if "://" in os.fspath(workdir) else _opened(workdir) as file:
        if file is not None:
            _lock(file, workdir)
        yield


def _opened(workdir: epath.Path) -> TextIO:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return open(workdir / ".lock", "a+")
    except OSError as error:
        raise WorkdirError(f"{workdir}: expected a folder that can be written to, found: {error.strerror}") from None


def _lock(file: TextIO, workdir: epath.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise WorkdirError(
            f"{workdir}: expected a folder without another run, found one of process {file.read().strip()}"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
