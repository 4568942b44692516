"""What compiling leaves on the heap goes back to the system."""

from __future__ import annotations

import ctypes

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS = 0.1  # what compiled faster leaves little


def trim_after_compiling() -> None:
    """From now on, what compiling a program has freed is given back to the system when it is compiled.

    The C library of Linux keeps it otherwise, which for an iteration of PPO is more than the iteration itself needs.
    Where the C library has no `malloc_trim`, nothing is done.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError):  # not glibc, or Windows
        return

    def compiled(event: str, seconds: float, **_: str | int) -> None:
        if event == _COMPILED and seconds > _SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(compiled)
