"""SIGTERM and SIGINT. The first signal asks a run to save and stop; the second stops it at once.

In a run of several processes, a signal to one of them stops all after the same step. SIGTERM, which announces that a
machine is preempted, is left to JAX's preemption service. It notices SIGTERM at each step, without waiting for the
devices. A second SIGTERM then has no effect, and one outside of training is noticed when the next stage begins. SIGINT
is noticed at lines of metrics, where the processes wait for each other anyway.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from instructjax.runs import processes

# The preemption service compares these numbers between processes. They grow from stage to stage, so that a stop that
# was agreed on at the end of one stage happens at the beginning of the next.
_numbers = itertools.count()


Requested = Callable[[bool], str | None]
_active: contextvars.ContextVar[Requested | None] = contextvars.ContextVar("requested", default=None)


class Interrupted(Exception):
    """A run stopped because it was asked to. It continues when it is started again."""


@contextlib.contextmanager
def requests() -> Iterator[Requested]:
    """Takes the first SIGTERM or SIGINT as a request to stop. The second has its usual effect.

    Only the main thread can receive signals. In other threads this does nothing.

    Yields:
      `requested(asking)`, which returns the name of the signal that was received, such as "SIGTERM", or None. All
      processes must call it at the same steps. They agree about SIGINT only if `asking` is True in all of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
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

    token = _active.set(requested)
    try:
        yield requested
    finally:
        _active.reset(token)
        restore()


def stop_if_requested() -> None:
    """Raises Interrupted with the name of the signal if the run was asked to stop. Call it while the host waits.

    Does nothing outside `requests`. All processes must call it equally often.
    """
    requested = _active.get()
    if requested is not None and (name := requested(True)):
        raise Interrupted(name)


def _agreed(received: list[str], asking: bool) -> str | None:
    """Returns the name of a signal that any of the processes received."""
    if multihost_utils.reached_preemption_sync_point(next(_numbers)):
        return signal.SIGTERM.name
    return signal.SIGINT.name if asking and processes.agreed(len(received)) else None
