"""Returns memory that compiling has freed to the system."""

from __future__ import annotations

import ctypes
import functools

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS = 0.1  # programs that compile faster leave little memory


@functools.cache  # one listener for a process, however often a script is started in it
def trim_after_compiling() -> None:
    """Returns freed memory to the system after each compilation from now on.

    Otherwise glibc keeps it. For an iteration of PPO this is more memory than the iteration itself needs. Without
    glibc's `malloc_trim`, this does nothing.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError):  # not glibc, or Windows
        return

    def compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED and duration_secs > _SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(compiled)
