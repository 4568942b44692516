"""Progress bars: one for the current work, and one over all stages of a run.

    with progress.Stages(["sft", "reward"]) as stages:
        for name in stages:
            ...  # each `Bar` that is opened here also moves the bar over all stages

The code of a stage does not know about the bar over all stages. Only the first process shows bars.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

import tqdm

from instructjax.runs import processes

Clock = Callable[[], float]

_SECONDS = 1.0  # between two drawings of a bar
_stages: ContextVar[Stages | None] = ContextVar("stages", default=None)


class Pace:
    """Measures how fast work is done, excluding the first measured part, which includes compilation.

    Only the last half to three quarters of the work counts, so a pause or a later compilation soon has no effect.
    """

    def __init__(self, clock: Clock = time.monotonic):
        """Takes a clock that returns seconds."""
        self._clock = clock
        self._first: float | None = None
        # Pairs of units and seconds. The pace is measured from `_older` to `_last`.
        self._older = self._newer = self._last = (0.0, 0.0)

    def measure(self, done: float) -> None:
        """Notes that `done` units are finished now. The first call marks the end of the compilation."""
        now = (done, self._clock())
        if self._first is None:
            self._first = done
            self._older = self._newer = self._last = now
        if done <= self._last[0]:
            return
        if done - self._first >= 2 * (self._newer[0] - self._first):
            self._older, self._newer = self._newer, now
        self._last = now

    @property
    def rate(self) -> float | None:
        """Units per second; None before two measurements."""
        seconds = self._last[1] - self._older[1]
        return (self._last[0] - self._older[0]) / seconds if seconds > 0 else None


class Bar(tqdm.tqdm):
    """The bar of one span of work, a context manager.

    Its remaining time is "?" until the pace is known; see `Pace`.
    """

    def __init__(
        self, label: str, total: int, unit: str, *, done: int = 0, stage: bool = False, clock: Clock = time.monotonic
    ):
        """Shows the bar.

        Args:
          label: what is done.
          total: units of work.
          unit: what is counted.
          done: units that an earlier process has finished.
          stage: whether the bar counts all steps of a stage. Such a bar stays when it is closed. It is also shown if
            standard error is not a terminal.
          clock: returns seconds.
        """
        self._pace, self.is_stage = Pace(clock), stage
        super().__init__(
            total=total,
            initial=done,
            desc=label,
            unit=unit,
            dynamic_ncols=True,
            mininterval=_SECONDS,
            leave=stage,
            disable=not (processes.is_first() and (stage or sys.stderr.isatty())),
        )
        if (stages := _stages.get()) and not self.disable:
            stages.follow(self)

    def update(self, n: float = 1) -> None:
        """Moves the bar by `n` units, which need not be finished: devices may still compute them."""
        super().update(n)
        if (stages := _stages.get()) and not self.disable:
            stages.refresh()

    def close(self) -> None:
        """Closes the bar. The bar of a stage stays above the others."""
        shown = not getattr(self, "disable", True)
        super().close()
        if shown and (stages := _stages.get()):
            stages.refresh(always=True)

    def measure(self, done: float) -> None:
        """Notes that `done` units are finished now, for the pace."""
        self._pace.measure(done)

    def add(self, n: float) -> None:
        """Moves the bar by `n` finished units."""
        self.measure(self.n + n)
        self.update(n)

    def over(self, batches: Iterable[Any], size: Callable[[Any], int] = len) -> Iterator[Any]:
        """Yields batches, and moves the bar by the size of each."""
        for batch in batches:
            self.add(size(batch))
            yield batch

    @property
    def seconds_left(self) -> float | None:
        """The remaining time at the measured pace; None if that is unknown."""
        return (self.total - self.n) / self._pace.rate if self._pace.rate else None

    @property
    def format_dict(self) -> Mapping[str, Any]:
        """The values that tqdm shows, with the measured pace instead of its own, which counts compilation."""
        return {**super().format_dict, "rate": self._pace.rate or 0}  # 0 is shown as "?"


class Stages:
    """A bar over all stages of a run, above the bar of the current one.

    A context manager, and an iterable over the stages' names. While it is open, lines on standard output appear above
    the bars. Nothing is shown if standard error is not a terminal.

    The bar counts stages. The remaining time is a lower bound: the rest of the current bar, and the later stages that
    `at_least` covers.
    """

    def __init__(
        self, names: Sequence[str], *, at_least: Mapping[str, str] | None = None, clock: Clock = time.monotonic
    ):
        """Takes the stages.

        Args:
          names: the stages, in order.
          at_least: maps a stage to an earlier one that takes no longer, such as PPO-ptx to PPO.
          clock: returns seconds.
        """
        self._names, self._at_least, self._clock = list(names), dict(at_least or {}), clock
        assert {*self._at_least, *self._at_least.values()} <= set(names)
        self._bar: Any = None
        self._current: Bar | None = None
        self._number, self._fraction, self._started, self._drawn = 0, 0.0, clock(), clock()
        self._seconds: dict[str, float] = {}  # of the stages that are finished

    def __enter__(self) -> Stages:
        self._stack = contextlib.ExitStack()
        shown = processes.is_first() and sys.stderr.isatty()
        self._bar = self._stack.enter_context(
            tqdm.tqdm(
                total=len(self._names),
                desc="all stages",
                bar_format="{desc} |{bar}| [{elapsed}{postfix}]",
                dynamic_ncols=True,
                disable=not shown,
            )
        )
        if shown:
            self._stack.callback(_stages.reset, _stages.set(self))
            printed = self._stack.enter_context(contextlib.closing(_AboveBars(sys.stdout)))
            self._stack.enter_context(contextlib.redirect_stdout(printed))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        for number, name in enumerate(self._names):
            self._number, self._current, self._fraction, self._started = number, None, 0.0, self._clock()
            self.refresh(always=True)
            yield name
            self._seconds[name] = self._clock() - self._started
        self._number, self._current, self._fraction = len(self._names), None, 0.0
        self.refresh(always=True)

    def follow(self, bar: Bar) -> None:
        """Takes the fraction and the remaining time of the current stage from a bar."""
        self._current = bar
        self.refresh(always=True)

    def refresh(self, *, always: bool = False) -> None:
        """Draws the bar, unless it was drawn less than a second ago; `always` draws it in any case."""
        now = self._clock()
        if not always and now - self._drawn < _SECONDS:
            return
        self._drawn = now
        count, bar = len(self._names), self._current
        if bar and bar.is_stage and bar.total:
            self._fraction = min(1.0, bar.n / bar.total)
        self._bar.n = self._number + self._fraction
        place = f"{self._number + 1} of {count}, {self._names[self._number]}" if self._number < count else "finished"
        self._bar.set_description_str(f"all stages: {place}", refresh=False)
        left = self.seconds_left
        left_text = f"at least {tqdm.tqdm.format_interval(left)} left" if left >= 1 else ""
        self._bar.set_postfix_str(left_text, refresh=False)
        self._bar.refresh()

    @property
    def seconds_left(self) -> float:
        """A lower bound on the remaining time of all stages; 0 if nothing is known."""
        left, known = self._current.seconds_left if self._current else None, dict(self._seconds)
        if left is not None:
            known[self._names[self._number]] = self._clock() - self._started + left
        return (left or 0.0) + sum(
            known.get(self._at_least.get(name, ""), 0.0) for name in self._names[self._number + 1 :]
        )


class _AboveBars:
    """A text stream that writes whole lines above all bars."""

    def __init__(self, stream: TextIO):
        self._stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._write("".join(line + "\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Does nothing: the bars would overwrite an unfinished line."""

    def close(self) -> None:
        if self._begun:
            self._write(self._begun + "\n")
            self._begun = ""

    def _write(self, text: str) -> None:
        with tqdm.tqdm.external_write_mode(file=sys.stderr):  # removes the bars, and draws them again
            self._stream.write(text)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
