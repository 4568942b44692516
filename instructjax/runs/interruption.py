"""SIGTERM and SIGINT: a run that is asked to stop saves first, and one that is asked twice leaves at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from instructjax.runs import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run stopped because it was asked to, and goes on when it is started again."""


@contextlib.contextmanager
def requests() -> Iterator[Callable[[bool], str | None]]:
    """Takes the first SIGTERM or SIGINT for a request, and lets the second act as it would have.

    Only the main thread can receive signals; elsewhere nothing is changed and nothing is requested.

    Yields:
      `requested(asking)`: the name of the signal that came, such as "SIGTERM", or None. In a run of
      several processes a signal to one of them stops all, and they speak about it only where
      `asking` is True, which must be at the same step in each.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    came: list[str] = []

    def note(number: int, _) -> None:
        came.append(signal.Signals(number).name)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda asking: _agreed(came) if asking or jax.process_count() == 1 else None
    finally:
        restore()


def _agreed(came: list[str]) -> str | None:
    """The name of a signal that came to any process."""
    number = processes.agreed(signal.Signals[came[0]].value if came else 0)
    return signal.Signals(number).name if number else None
