"""Coordinates a run of several processes.

Every process runs the same program on its own devices, and all see the same folder; both are checked at the start. All
of them write checkpoints. Only the first one writes other files; the others wait for it, and fail if it fails.

They exchange texts through JAX's coordination service and use no device for it: a process may come hours late to an
exchange, and a reward function may use the devices meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import multihost

from instructjax import files
from instructjax.errors import InputError
from instructjax.runs import failures

T = TypeVar("T")

DEVICES = pathlib.Path("/dev")  # contains the chips of a TPU host on Linux

# If a process sends no heartbeat for this long, the others exit. On a pod, networks pause for longer than 20 s.
HEARTBEAT_SECONDS = 60

# A process says that it waits for others, and gives up. Pods and schedulers start their hosts minutes apart.
WAITING_SECONDS, START_SECONDS = 10, 300

MOST_DIFFERENCES = 5  # that are listed when processes do not agree

# How long a process waits for the text of another, which may prepare data for hours. A process that has ended is
# noticed after HEARTBEAT_SECONDS.
EXCHANGE_SECONDS = 14 * 24 * 3600

_exchanges = itertools.count()  # All processes make the same exchanges in the same order.

# A process may see a file of another later, because network file systems cache the contents of folders.
FOLDER_SECONDS = 20


def start(coordinator: str | None, index: int | None, count: int | None) -> None:
    """Connects the processes of a run, before any device is used. Does nothing if there is only one.

    If the others are late, it prints what it waits for. If they do not come, it ends this process with a line and exit
    code 2.

    JAX detects all arguments on TPUs, in a SLURM step (`srun`) and under Open MPI. On a machine with
    TPUs, a count of 1 without other arguments prevents the search for other processes.

    Args:
      coordinator: HOST:PORT of the first process, at which the others reach it.
      index: the number of this process, from 0.
      count: the number of processes.

    Raises:
      InputError: only some arguments are given, they are inconsistent, the port is taken, or nothing describes the
        other hosts of a TPU slice.
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
    others = f"{count} processes to connect to {coordinator}" if coordinator else "the other processes of this run"
    try:
        with _impatient(others):
            jax.distributed.initialize(
                coordinator,
                count,
                index,
                initialization_timeout=2 * START_SECONDS,  # when it is over, JAX aborts with a stack trace
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except ValueError as error:
        if coordinator is not None or "coordinator_address" not in str(error):
            raise
        # On Colab, on Kaggle and in containers no metadata server tells a TPU host about others.
        if jax.process_count() > 1:
            raise InputError(
                f"expected a description of the {jax.process_count()} hosts of this TPU slice, found none; give "
                "--coordinator, --process_id and --process_count"
            ) from None
        print("found chips, but no description of other hosts: this process runs alone", file=sys.stderr)


@contextlib.contextmanager
def _impatient(others: str) -> Iterator[None]:
    """Prints what the process waits for, and ends the process if that does not come."""

    def announce() -> None:
        print(f"waiting for {others}, for {START_SECONDS} s at most", file=sys.stderr, flush=True)

    def give_up() -> None:
        print(f"error: expected {others} within {START_SECONDS} s, found none or too few", file=sys.stderr, flush=True)
        os._exit(2)  # the main thread waits in JAX and cannot be interrupted

    timers = threading.Timer(WAITING_SECONDS, announce), threading.Timer(START_SECONDS, give_up)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


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


def each(function: Callable[[], T]) -> T:
    """Calls a function in every process and returns its result there. If it fails in one, raises in all of them.

    So all processes do the same after an error. The function must not use what needs the other processes, such as a
    collective of their devices.

    Raises:
      Exception: the error of the first of the processes that failed; in the others one of the same class that names
        that process. See `failures.rebuild`.
    """
    if jax.process_count() == 1:
        return function()
    result: list[T] = []
    failure: BaseException | None = None
    try:
        result.append(function())
    except BaseException as error:  # raised below, after the other processes have been informed
        failure = error
    described = gather("" if failure is None else failures.describe(failure))
    failed = next((number for number, text in enumerate(described) if text), None)
    if failed is None:
        return result[0]
    if failure is not None and (failed == jax.process_index() or not isinstance(failure, Exception)):
        raise failure
    raise failures.rebuild(described[failed], failed) from failure


def first(function: Callable[[], object]) -> None:
    """Calls a function in the first process, while the others wait.

    Raises:
      Exception: if the function failed, in all processes; see `each`.
    """
    each(function if is_first() else lambda: None)


def first_then_others(function: Callable[[], T]) -> T:
    """Calls a function in the first process, then in all, where it finds the files that the first call has written.

    Raises:
      Exception: if the function failed in one process, in all of them; see `each`.
    """
    if jax.process_count() > 1:
        first(function)
    return each(function)


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, in the order of their numbers, to all of them."""
    if jax.process_count() == 1:
        return [text]
    client, own, number = multihost.get_jax_distributed_client(), jax.process_index(), next(_exchanges)
    client.key_value_set(_key(number, own), text)
    found = [
        client.blocking_key_value_get(_key(number, index), EXCHANGE_SECONDS * 1000)
        for index in range(jax.process_count())
    ]
    if number:  # every process has begun this exchange, so all of them have read the texts of the last one
        client.key_value_delete(_key(number - 1, own))
    return found


def _key(number: int, index: int) -> str:
    return f"instructjax/{number}/{index}"


def from_first(function: Callable[[], str]) -> str:
    """Returns the text that a function returns in the first process, to all processes.

    Raises:
      Exception: see `first`.
    """
    found: list[str] = []
    first(lambda: found.append(function()))
    return gather("".join(found))[0]


def check_equal(facts: Mapping[str, Any]) -> None:
    """Raises an error, the same one in all processes, unless all of them start with the same facts.

    Processes with different recipes or versions would train different networks and save a mixture of their weights.

    Args:
      facts: JSON values with their names, such as {"sft.epochs": 2, "jax": "0.10.0"}.

    Raises:
      InputError: names each fact that differs, with both values.
    """
    expected, *others = map(json.loads, gather(json.dumps(facts)))
    differing = [
        f"process {number}: {name}: expected {expected.get(name)!r}, as in process 0, found {other.get(name)!r}"
        for number, other in enumerate(others, start=1)
        for name in expected | other
        if expected.get(name) != other.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - MOST_DIFFERENCES} more" if len(differing) > MOST_DIFFERENCES else ""
        raise InputError("; ".join(differing[:MOST_DIFFERENCES]) + more)


def check_same_folder(folder: epath.PathLike) -> None:
    """Raises an error, the same one in all processes, unless all of them see one folder.

    The first process writes a file, and the others look for it.

    Args:
      folder: it exists in the first process.

    Raises:
      InputError: names the processes that do not see it, and their hosts.
    """
    if jax.process_count() == 1:
        return
    (token, *_) = gather(secrets.token_hex(8))
    file = epath.Path(folder) / f".seen-by-all-{token}"
    first(file.touch)
    deadline = time.monotonic() + FOLDER_SECONDS
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    place = folder if files.is_bucket(folder) else pathlib.Path(folder).absolute()
    places = gather("" if seen else f"{socket.gethostname()}:{place}")
    first(lambda: file.unlink(missing_ok=True))
    if missing := [f"process {number} ({place})" for number, place in enumerate(places) if place]:
        raise InputError(
            f"--workdir: expected a folder that all processes share, found another one in {', '.join(missing)}"
        )


def connect_devices() -> None:
    """Makes the first collective of every group of devices along axes of the mesh, in a run of several processes.

    XLA connects the devices of a group at its first collective. If some of its processes arrive 30 s later than others,
    it fails, and JAX aborts all of them. A program of a stage may take much longer than that to compile, in one process
    more than in another. Later collectives wait as long as they must.
    """
    if jax.process_count() == 1:
        return
    mesh = jax.sharding.get_mesh()
    axes = [name for name, size in mesh.shape.items() if size > 1]
    groups = [group for count in range(1, len(axes) + 1) for group in itertools.combinations(axes, count)]
    rows = P(mesh.axis_names)

    @functools.partial(jax.shard_map, in_specs=rows, out_specs=rows)
    def add(x: jax.Array) -> jax.Array:
        return sum((jax.lax.psum(x, group) for group in groups), start=x)

    program = jax.jit(lambda: add(jnp.arange(mesh.size))).lower().compile()
    gather("")  # so that all arrive now
    jax.block_until_ready(program())
    multihost_utils.sync_global_devices("instructjax")  # the groups with a device of each process, which Orbax uses


def agreed(number: int) -> int:
    """Returns the maximum of a number over all processes, to all of them."""
    if jax.process_count() == 1:
        return number
    return max(map(int, gather(str(number))))
