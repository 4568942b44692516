"""SIGTERM and SIGINT. The first signal asks a run to save and stop; the second stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from instructjax.runs import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run stopped because it was asked to. It continues when it is started again."""


@contextlib.contextmanager
def requests() -> Iterator[Callable[[bool], str | None]]:
    """Takes the first SIGTERM or SIGINT as a request to stop. The second has its usual effect.

    Only the main thread can receive signals. In other threads this does nothing.

    Yields:
      `requested(asking)`, which returns the name of the signal that was received, such as "SIGTERM", or
      None. In a run of several processes, a signal to one of them stops all. They communicate only if
      `asking` is True, which must be at the same steps in each of them.
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

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda asking: _agreed(received) if asking or jax.process_count() == 1 else None
    finally:
        restore()


def _agreed(received: list[str]) -> str | None:
    """Returns the name of a signal that any of the processes received."""
    number = processes.agreed(signal.Signals[received[0]].value if received else 0)
    return signal.Signals(number).name if number else None
