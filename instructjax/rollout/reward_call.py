"""Calls a reward function in a thread, with retries and a time limit. Meanwhile the main thread can notice signals."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from instructjax import warning_log
from instructjax.errors import RewardFunctionError
from instructjax.rollout.reward_function import RewardFunction

TRANSIENT = (ConnectionError, TimeoutError)  # errors after which a call is tried again


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long, and how often, a reward function is asked for the scores of a batch.

    Attributes:
      retries: further tries after one of the errors `TRANSIENT`.
      retry_seconds: pause before each of them.
      timeout_seconds: the longest time that one try may take; 0 or infinity for no limit.
    """

    retries: int
    retry_seconds: float
    timeout_seconds: float


class Call:
    """A call of a reward function that runs in its own thread.

    A thread cannot be stopped. A call that nobody waits for any longer ends with the process at the latest. Meshes that
    the main thread has set do not apply in it, so a function that uses JAX runs on the default device.
    """

    def __init__(
        self,
        function: RewardFunction,
        limits: Limits,
        prompts: Sequence[str],
        responses: Sequence[str],
        records: Sequence[Mapping[str, Any]],
    ):
        """Starts the call; see `RewardFunction.__call__`."""
        self._function, self._limits = function, limits
        self._given = prompts, responses, records
        self._scores: list[float] = []
        self._error: RewardFunctionError | None = None
        self._began = math.inf  # the time at which the current try began; infinite in a pause
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=function.name, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Waits for at most so many seconds, and returns whether the call has ended or has exceeded its time limit."""
        if self._ended.wait(seconds):
            return True
        limit = self._limits.timeout_seconds or math.inf
        return time.monotonic() - self._began > limit

    def scores(self) -> list[float]:
        """Returns the score of each response, after `wait` has returned True.

        Raises:
          RewardFunctionError: the function failed, or exceeded the time limit.
        """
        if not self._ended.is_set():
            count, limit = len(self._given[1]), self._limits.timeout_seconds
            raise RewardFunctionError(
                f"{self._function.name}: expected a finite number for each of {count} responses within {limit:g} s "
                "(reward_timeout_seconds), found no answer"
            )
        if self._error is not None:
            raise self._error
        return self._scores

    def _run(self) -> None:
        try:
            self._try()
        except BaseException as error:  # a thread that ended in silence would be waited for without end
            self._error = RewardFunctionError(f"{self._function.name}: {type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _try(self) -> None:
        for retry in range(1, self._limits.retries + 2):
            self._began = time.monotonic()
            try:
                self._scores = self._function(*self._given)
                break
            except RewardFunctionError as error:
                if retry > self._limits.retries or not isinstance(error.__cause__, TRANSIENT):
                    self._error = error
                    break
                pause = self._limits.retry_seconds
                warning_log.warn(f"{error}; trying again in {pause:g} s ({retry} of {self._limits.retries})")
            self._began = math.inf
            time.sleep(self._limits.retry_seconds)
