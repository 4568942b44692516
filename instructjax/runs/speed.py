"""The speed of a window of steps: tokens per second, MFU, the time that devices waited for data, and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import accelerators
from instructjax import batch as batches
from instructjax.training import parallel

# The values of a line of metrics that depend on the machine. They differ between two runs that are otherwise equal.
MEASURED = ("wall_seconds", "tokens_per_second", "mfu", "data_wait_seconds", "memory_gib")
MATMUL = 1024  # the sides of the matrices by which the matmul rate of a CPU is measured


Flops: TypeAlias = Callable[[Mapping[str, float]], float]


@dataclasses.dataclass(frozen=True)
class Matmuls:
    """The matmuls of a step.

    Attributes:
      flops: `flops(batch, step)` returns a function of the metrics of a line that computes the model FLOPs of a step,
        counted from 1, on this process's rows of the batch. The host does not know how long responses are before it
        reads the metrics.
      dtype: of their arguments.
    """

    flops: Callable[[Any, int], Flops]
    dtype: str


@dataclasses.dataclass
class Window:
    """The steps since the last line of metrics.

    Attributes:
      tokens: tokens of their batches in all processes, estimated from this process's rows, without padding. Those that
        PPO samples are not counted.
      flops: of its steps, those of this process's rows; see `Matmuls`. Empty if they are not known.
      waited: seconds in which this process waited for batches.
    """

    tokens: float = 0.0
    flops: list[Flops] = dataclasses.field(default_factory=list)
    waited: float = 0.0


class Speed:
    """Measures windows of steps."""

    def __init__(self, matmuls: Matmuls | None = None, clock: Callable[[], float] = time.monotonic):
        """Begins the first window.

        Args:
          matmuls: of a step; None if they are not known.
          clock: returns seconds.
        """
        self._matmuls = matmuls
        self._clock, self._window, self._began, self._ended = clock, Window(), clock(), 0.0
        share = parallel.share_of_rows()
        self._whole_over_own = share.count / len(share.parts)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of a block that makes the next batch."""
        start = self._clock()
        yield
        self._window.waited += self._clock() - start

    def count(self, batch: Any, step: int) -> None:
        """Counts the tokens of a step's batch, see `batch.count_tokens`, and its FLOPs."""
        self._window.tokens += self._whole_over_own * batches.count_tokens(batch)
        if self._matmuls is not None:
            self._window.flops.append(self._matmuls.flops(batch, step))

    def cut(self) -> Window:
        """Ends the window and returns it; what is counted from now on belongs to the next one."""
        window, self._window = self._window, Window()
        return window

    def restart(self) -> None:
        """Drops the window; the next one begins now."""
        self.cut()
        self._began = self._clock()

    def arrived(self) -> None:
        """Notes that the metrics of a window have arrived, so its steps are done."""
        self._ended = self._clock()

    def values(self, window: Window, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of a window that has arrived, and starts the time of the next one.

        The time between the two calls, in which evaluations run, is not counted.

        Args:
          window: the window.
          metrics: of its line.
        """
        seconds, self._began = self._ended - self._began, self._clock()
        values = {"data_wait_seconds": window.waited}
        if window.tokens and seconds > 0:
            values["tokens_per_second"] = window.tokens / seconds
        flops = self._whole_over_own * sum(count(metrics) for count in window.flops)
        if self._matmuls and flops and seconds > 0 and (peak := peak_flops(self._matmuls.dtype)):
            values["mfu"] = flops / seconds / peak
        if (memory := memory_gib()) is not None:
            values["memory_gib"] = memory
        return values


@functools.cache
def peak_flops(dtype: str) -> float | None:
    """Returns the FLOP/s of all devices: the published peak, or on a CPU the matmul rate measured at the first call.

    None if no peak is published for this chip in `accelerators.CHIPS`. A CPU counts once per process.

    Args:
      dtype: of the matmul's arguments on a CPU; published peaks are those of bfloat16.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        chip = accelerators.of_device(device)
        return chip.peak * jax.device_count() if chip else None
    product = jax.jit(lambda x: jnp.dot(x, x.T, preferred_element_type=jnp.float32))
    own, automatic = np.array(jax.local_devices()[:1]), (jax.sharding.AxisType.Auto,)
    laps = []
    with jax.set_mesh(jax.sharding.Mesh(own, ("one",), axis_types=automatic)):  # instead of the mesh of the run
        square = jnp.full((MATMUL, MATMUL), 1 / MATMUL, dtype)
        for _ in range(4):
            start = time.perf_counter()
            product(square).block_until_ready()
            laps.append(time.perf_counter() - start)
    return 2 * MATMUL**3 / min(laps) * jax.process_count()


def memory_gib() -> float | None:
    """Returns the memory in use of this process's first device, or of the process if the device is a CPU.

    None if neither is known.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return stats["bytes_in_use"] / 2**30
    status = pathlib.Path("/proc/self/status")
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(resident[1]) / 2**20 if resident else None
