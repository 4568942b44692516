"""Locks on a run's folders, so that only one run at a time writes to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import TextIO

from etils import epath

from instructjax import files, warning_log
from instructjax.errors import DataError, WorkdirError


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
    """Locks the folder of a run, and creates it if needed.

    The kernel releases the lock when this process ends, however it ends. A bucket has no locks. There, a second run is
    rejected only on the same host. WORKDIR/.running marks a run that has not ended; another run prints a
    warning about it and continues, because a run that was killed leaves the mark, too.

    Raises:
      WorkdirError: another process holds the folder, or it cannot be written to.
    """
    workdir = epath.Path(workdir)
    in_bucket = files.is_bucket(workdir)
    with _opened(files.local_folder(workdir)) as file:
        _lock(file, workdir)
        with _marked(workdir / ".running") if in_bucket else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def claim(folder: epath.Path, owner: str) -> Iterator[None]:
    """Reserves a local folder for the prepared records of a run, and creates it if needed.

    Other processes of the same run wait until this one leaves the context.

    Args:
      folder: a new or empty folder, or one that was claimed for the same run before.
      owner: the folder of that run.

    Raises:
      DataError: the folder has other files, or belongs to another run.
    """
    mark = folder / ".prepared_for"
    has_files = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if has_files and not mark.exists():
        raise DataError(f"data.prepared: expected a new or empty folder, found other files in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with open(mark, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = file.read()
        if found and found != owner:
            raise DataError(f"data.prepared: expected a folder for {owner}, found the records of {found} in {folder}")
        if not found:
            file.write(owner)
            file.flush()
        yield


def _opened(folder: epath.Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / ".lock", "a+")
    except OSError as error:
        raise WorkdirError(f"{folder}: expected a folder that can be written to, found: {error.strerror}") from None


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


def _read(mark: epath.Path) -> str:
    """Returns the content of a file in a bucket; "" if there is none."""
    try:
        return mark.read_text() if mark.exists() else ""
    except Exception as error:  # the packages that open buckets raise many kinds
        found = files.describe_error(error)
        raise WorkdirError(f"{mark.parent}: expected a bucket that can be read, found {found}") from None


@contextlib.contextmanager
def _marked(mark: epath.Path) -> Iterator[None]:
    """Writes a mark in a bucket, and removes it at the end. Fails if the bucket cannot be written to."""
    if before := _read(mark):
        warning_log.warn(f"{mark.parent}: {before} did not end its run here; make sure that it has stopped")
    files.write_text(mark, f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # a mark that stays only causes a warning
            mark.unlink()
