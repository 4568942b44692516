"""SIGTERM and SIGINT. The first signal asks a run to save and stop; the second stops it at once.

In a run of several processes, a signal to one of them stops all at the same place. SIGTERM, which announces that a
machine is preempted, is left to JAX's preemption service. It notices SIGTERM at each step, without waiting for the
devices, and outside of training between the items of `stoppable`, such as batches of answers. A second SIGTERM then has
no effect. SIGINT is noticed at lines of metrics, where the processes wait for each other anyway.

Outside of training a signal ends a single process at once, and SIGINT also one of several.
"""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from instructjax.errors import Interrupted
from instructjax.runs import processes

T = TypeVar("T")

Requested = Callable[[bool], str | None]
_active: contextvars.ContextVar[Requested | None] = contextvars.ContextVar("requested", default=None)

# How often this process has asked the preemption service. All processes stop at the call after the last one that any of
# them has made, so the number grows over all stages.
_calls = 0


@contextlib.contextmanager
def requests() -> Iterator[Requested]:
    """Takes the first SIGTERM or SIGINT as a request to stop. The second has its usual effect.

    Only the main thread can receive signals. In other threads this does nothing.

    Yields:
      `requested(asking)`, which returns the name of the signal that was received, such as "SIGTERM", or None. All
      processes must call it at the same steps. They agree about SIGINT only if `asking` is True in all of them.
    """
    if threading.current_thread() is not threading.main_thread():
        with _active_as(lambda _: None) as never:
            yield never
        return
    received: list[str] = []

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    alone = jax.process_count() == 1
    # JAX's own handler of SIGTERM was installed when the processes were connected.
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *[signal.SIGTERM] * alone)}

    def requested(asking: bool) -> str | None:
        return next(iter(received), None) if alone else _agreed(received, asking)

    try:
        with _active_as(requested):
            yield requested
    finally:
        restore()


@contextlib.contextmanager
def _active_as(requested: Requested) -> Iterator[Requested]:
    token = _active.set(requested)
    try:
        yield requested
    finally:
        _active.reset(token)


def stop_if_requested(place: str) -> None:
    """Raises Interrupted if the run was asked to stop. Call it while the host waits.

    In `requests` the message is the name of the signal. Outside, only SIGTERM to a run of several processes is noticed,
    and the message is a whole line. All processes must call it equally often.

    Args:
      place: what the line begins with, such as "evaluate".
    """
    requested = _active.get()
    if requested is None:
        _stop_if_preempted(place)
    elif name := requested(True):
        raise Interrupted(name)


def stoppable(items: Iterable[T], place: str) -> Iterator[T]:
    """Yields items, such as batches of answers. SIGTERM to a run of several processes stops it before and after each.

    In `requests` it only yields them: there, steps and reward functions notice signals. All processes must take equally
    many items, except in `apart`.

    Args:
      items: what is done outside of training and takes long.
      place: what the line begins with, such as "evaluate".

    Raises:
      Interrupted: the run was asked to stop.
    """
    watched = _active.get() is None and jax.process_count() > 1
    if watched:
        _stop_if_preempted(place)
    for item in items:
        yield item
        if watched:
            _stop_if_preempted(place)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Lets each process take as many items of `stoppable` as it needs. All processes must enter and leave it."""
    global _calls
    yield
    _calls = processes.agreed(_calls)


def _stop_if_preempted(place: str) -> None:
    if _preempted():
        raise Interrupted(f"{place}: stopped by {signal.SIGTERM.name}")


def _preempted() -> bool:
    """Returns whether several processes stop at this call, because one of them has received SIGTERM."""
    global _calls
    if jax.process_count() == 1:
        return False
    _calls += 1
    return multihost_utils.reached_preemption_sync_point(_calls)


def _agreed(received: list[str], asking: bool) -> str | None:
    """Returns the name of a signal that any of the processes received."""
    if _preempted():
        return signal.SIGTERM.name
    return signal.SIGINT.name if asking and processes.agreed(len(received)) else None
