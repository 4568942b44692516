"""Coordinates a run of several processes.

Every process runs the same program on its own devices, and all see the same folder. All of them write
checkpoints. Only the first one writes other files; the others wait for it, and exit if it fails.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import socket
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from instructjax.errors import InputError

T = TypeVar("T")

DEVICES = pathlib.Path("/dev")  # contains the chips of a TPU host on Linux

# If a process sends no heartbeat for this long, the others exit; in total this takes less than a minute.
HEARTBEAT_SECONDS = 20


def start(coordinator: str | None, index: int | None, count: int | None) -> None:
    """Connects the processes of a run, before any device is used. Does nothing if there is only one.

    JAX detects all arguments on TPUs, in a SLURM step (`srun`) and under Open MPI. On a machine with
    TPUs, a count of 1 without other arguments prevents the search for other processes.

    Args:
      coordinator: HOST:PORT of the first process, at which the others reach it.
      index: the number of this process, from 0.
      count: the number of processes.

    Raises:
      InputError: only some arguments are given, they are inconsistent, or the port is taken.
    """
    if count == 1 and coordinator is None and index is None:
        return
    given = {"coordinator": coordinator, "process_id": index, "process_count": count}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise InputError(f"{', '.join(missing)}: expected with the other flags of several processes, found none")
    if missing and not _on_a_cluster():
        return
    if coordinator is not None and index is not None and count is not None:
        _check(coordinator, index, count)
    jax.distributed.initialize(
        coordinator,
        count,
        index,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _check(coordinator: str, index: int, count: int) -> None:
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator: expected HOST:PORT, found {coordinator!r}")
    if count < 1:
        raise InputError(f"--process_count: expected at least 1, found {count}")
    if not 0 <= index < count:
        raise InputError(f"--process_id: expected 0 to {count - 1}, found {index}")
    if index == 0:
        try:
            socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
        except (OSError, OverflowError) as error:  # JAX would crash
            raise InputError(f"--coordinator: expected a port that is free, found {coordinator}: {error}") from None


def _on_a_cluster() -> bool:
    """Returns whether JAX may detect other processes: on TPUs, under srun, or under mpirun."""
    chips = [path for pattern in ("accel[0-9]*", "vfio/[0-9]*") for path in DEVICES.glob(pattern)]
    tpus = bool(chips) and importlib.util.find_spec("libtpu") is not None
    step = "SLURM_STEP_NODELIST" in os.environ and _tasks("SLURM_STEP_NUM_TASKS") > 1
    return tpus or step or _tasks("OMPI_COMM_WORLD_SIZE") > 1


def _tasks(name: str) -> int:
    found = os.environ.get(name, "1")
    if not found.isdecimal():
        raise InputError(f"{name}: expected a number of processes in the environment, found {found!r:.60}")
    return int(found)


def is_first() -> bool:
    """Returns whether this is the process that writes and prints."""
    return jax.process_index() == 0


def first(function: Callable[[], object]) -> None:
    """Calls a function in the first process, while the others wait.

    Raises:
      InputError: in the others, if the function failed in the first; the first raises the error itself.
    """
    if jax.process_count() == 1:
        function()
        return
    failure: BaseException | None = None
    if is_first():
        try:
            function()
        except BaseException as error:  # raised below, after the other processes have been informed
            failure = error
    failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise InputError("the first process failed; its output says why")


def first_then_others(function: Callable[[], T]) -> T:
    """Calls a function in the first process, then in the others, which find the files that it has written."""
    if jax.process_count() == 1:
        return function()
    first(function)
    return function()


def agreed(number: int) -> int:
    """Returns the maximum of a number over all processes, to all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
