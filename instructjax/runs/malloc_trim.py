"""Returns memory that compilation has freed to the system."""

from __future__ import annotations

import ctypes
import functools

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_SECONDS = 0.1  # programs that compile faster free little memory


@functools.cache  # one listener for a process, however often a script is started in it
def trim_after_compiling() -> None:
    """Registers a listener that returns freed memory to the system after each compilation.

    Otherwise glibc keeps it. For a PPO iteration this is more memory than the iteration itself needs. Does nothing if
    the C library has no `malloc_trim`.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError):  # not glibc, or Windows
        return

    def compiled(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED and duration_secs > _SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(compiled)
