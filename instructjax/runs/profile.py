"""A profile of a few steps, for TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

# Steps of a start that come before the profile: they compile, and fill the queue of batches.
SKIPPED = 2


@contextlib.contextmanager
def steps_profiled(folder: epath.PathLike, count: int) -> Iterator[Callable[[Any], None]]:
    """Writes a profile of `count` steps, the third and those after it, of a block that makes steps.

    A block with fewer steps leaves a shorter profile or none.

    Args:
      folder: receives the profile; see https://docs.jax.dev/en/latest/profiling.html.
      count: the number of steps; 0 for no profile.

    Yields:
      `made(metrics)`, to be called after each step has been started, with its metrics.
    """
    number, active = 0, False

    def made(metrics: Any) -> None:
        nonlocal number, active
        number += 1
        if count and number == SKIPPED:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(os.fspath(folder))
            active = True
        elif active and number == SKIPPED + count:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            active = False

    try:
        yield made
    finally:
        if active:
            jax.profiler.stop_trace()
