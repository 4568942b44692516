"""Bars estimate the remaining time without compilation, and appear only where somebody sees them."""

import io
import re
import sys

import pytest

from instructjax.runs import processes, progress


class Clock:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def terminal(monkeypatch):
    """Makes standard error and output one terminal. Not a fixture: pytest replaces both before it calls a test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def finish(bar, clock, *seconds):
    """Finishes units of work that take the given seconds."""
    for taken in seconds:
        clock.seconds += taken
        bar.add(1)


def test_the_first_estimate_does_not_count_the_compilation(monkeypatch, clock):
    terminal(monkeypatch)
    with progress.Bar("work", 100, "step", clock=clock) as bar:
        assert bar.seconds_left is None and "<?" in str(bar)
        finish(bar, clock, 60)
        assert bar.seconds_left is None and "<?" in str(bar)
        finish(bar, clock, 2)
        assert bar.seconds_left == 98 * 2 and "<03:16" in str(bar)


def test_a_later_compilation_is_forgotten(monkeypatch, clock):
    terminal(monkeypatch)
    with progress.Bar("work", 100, "step", clock=clock) as bar:
        finish(bar, clock, 60, 2, 2, 60, *[2] * 12)
        assert bar.seconds_left == 84 * 2


def test_the_pace_follows_the_recent_half(monkeypatch, clock):
    terminal(monkeypatch)
    with progress.Bar("work", 1000, "step", clock=clock) as bar:
        finish(bar, clock, 9, *[1] * 50, *[3] * 150)
        assert bar.seconds_left == 799 * 3


def test_a_resumed_bar_counts_from_the_resumed_step(monkeypatch, clock):
    terminal(monkeypatch)
    with progress.Bar("work", 100, "step", done=90, clock=clock) as bar:
        finish(bar, clock, 60, 2)
        assert bar.n == 92 and bar.seconds_left == 8 * 2


def test_units_that_are_only_started_do_not_count_for_the_pace(monkeypatch, clock):
    terminal(monkeypatch)
    with progress.Bar("work", 100, "step", clock=clock) as bar:
        finish(bar, clock, 60)
        bar.update(9)  # devices still compute them
        assert bar.seconds_left is None
        clock.seconds += 18
        bar.measure(10)
        assert bar.seconds_left == 90 * 2


def test_batches_move_the_bar_by_their_sizes(monkeypatch):
    terminal(monkeypatch)
    with progress.Bar("work", 5, "answer") as bar:
        assert list(bar.over(["ab", "cde"])) == ["ab", "cde"]
        assert bar.n == 5


@pytest.mark.parametrize(("is_terminal", "first"), [(False, True), (True, False), (False, False)])
def test_bars_that_nobody_sees_are_not_drawn(monkeypatch, is_terminal, first):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(processes, "is_first", lambda: first)
    with progress.Stages(["one"]) as names:
        for _ in names:
            with progress.Bar("span", 2, "step") as bar:
                bar.add(2)
    assert stream.getvalue() == ""


def test_a_stage_s_bar_is_drawn_in_a_log_file(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.Bar("sft", 2, "step", stage=True) as bar:
        bar.update(2)
    assert "sft: 100%" in sys.stderr.getvalue()


def test_the_bar_over_all_stages_counts_stages_and_the_current_one_s_steps(monkeypatch, clock):
    screen = terminal(monkeypatch)
    with progress.Stages(["sft", "reward"], clock=clock) as stages:
        places = []
        for name in stages:
            with progress.Bar(name, 4, "step", stage=True, clock=clock) as bar:
                for _ in range(4):
                    finish(bar, clock, 2)
                    places.append(stages._bar.n)
    assert places == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    shown = re.findall(r"all stages: ([\w ,]+?) \|", screen.getvalue())
    assert list(dict.fromkeys(shown)) == ["1 of 2, sft", "2 of 2, reward", "finished"]


def test_the_remaining_time_of_all_stages_is_a_lower_bound(monkeypatch, clock):
    screen = terminal(monkeypatch)
    with progress.Stages(["sft", "ppo", "ppo_ptx"], clock=clock, at_least={"ppo_ptx": "ppo"}) as stages:
        names = iter(stages)
        next(names)
        assert stages.seconds_left == 0
        with progress.Bar("sft", 10, "step", stage=True, clock=clock) as bar:
            finish(bar, clock, 30, 2)
            assert stages.seconds_left == 8 * 2  # nothing is known about PPO
        next(names)
        with progress.Bar("ppo", 10, "step", stage=True, clock=clock) as bar:
            finish(bar, clock, 30, 2)
            assert stages.seconds_left == 8 * 2 + (32 + 8 * 2)
            finish(bar, clock, *[2] * 8)
        assert "at least 01:04 left" in screen.getvalue()
        next(names)
        assert stages.seconds_left == 0
        with progress.Bar("ppo_ptx", 10, "step", stage=True, clock=clock) as bar:
            finish(bar, clock, 30, 5)
            assert stages.seconds_left == 8 * 5


def test_lines_that_are_printed_have_a_line_of_their_own(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.Stages(["evaluate"]) as names:
        for _ in names:
            print("model", "reward")
            print("half a line", end="")
    lines = re.split(r"[\r\n]+", screen.getvalue())
    assert "model reward" in lines and "half a line" in lines
    assert sys.stdout is screen


def test_a_failure_ends_the_bars(monkeypatch):
    screen = terminal(monkeypatch)
    with pytest.raises(ValueError), progress.Stages(["sft"]) as names:
        for name in names:
            with progress.Bar(name, 2, "step", stage=True):
                raise ValueError
    assert screen.getvalue().endswith("\n")
    with progress.Bar("alone", 2, "step"):  # no bar over all stages follows it any more
        pass
    assert "all stages" not in screen.getvalue().rpartition("alone")[2]
