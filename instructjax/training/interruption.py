"""SIGTERM and SIGINT: a run that is asked to stop saves first, and one that is asked twice leaves at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run stopped because it was asked to, and goes on when it is started again."""


@contextlib.contextmanager
def requests() -> Iterator[Callable[[], str | None]]:
    """Takes the first SIGTERM or SIGINT for a request, and lets the second act as it would have.

    Only the main thread can receive signals; elsewhere nothing is changed and nothing is requested.

    Yields:
      `requested()`: the name of the signal that came, such as "SIGTERM", or None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
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
        yield lambda: came[0] if came else None
    finally:
        restore()
