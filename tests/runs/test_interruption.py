"""Several processes stop between items outside of training, and agree on how often they have asked."""

import jax
import pytest
from jax.experimental import multihost_utils

from instructjax.errors import Interrupted
from instructjax.runs import interruption, processes


@pytest.fixture
def asked(monkeypatch):
    """Imitates one of two processes; returns the numbers that it has asked the preemption service about."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return number == numbers[0] + 3

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    return numbers


def taken(place, count=6):
    """Returns the items that are taken before a stop, and its line."""
    done = []
    try:
        for item in interruption.stoppable(range(count), place):
            done.append(item)
    except Interrupted as error:
        return done, str(error)
    return done, None


def test_several_processes_stop_between_items(asked):
    assert taken("evaluate") == ([0, 1, 2], "evaluate: stopped by SIGTERM")
    assert asked == list(range(asked[0], asked[0] + 4))  # before the first item and after each


def test_numbers_grow_from_one_loop_to_the_next(asked):
    assert taken("select", 1) == ([0], None)
    assert taken("evaluate") == ([0], "evaluate: stopped by SIGTERM")
    assert asked == list(range(asked[0], asked[0] + 4))


def test_a_single_process_asks_nothing(asked, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert taken("evaluate") == (list(range(6)), None)
    interruption.stop_if_requested("evaluate")
    assert not asked


def test_training_notices_signals_by_itself(asked):
    with interruption.requests() as requested:
        assert taken("validation") == (list(range(6)), None)
        assert not asked
        assert [requested(False) for _ in range(3)] == [None] * 3
        with pytest.raises(Interrupted, match="^SIGTERM$"):
            interruption.stop_if_requested("ppo, iteration 3")


def test_the_wait_for_a_reward_function_is_stopped_outside_of_training(asked):
    for _ in range(3):
        interruption.stop_if_requested("evaluate")
    with pytest.raises(Interrupted, match="^evaluate: stopped by SIGTERM$"):
        interruption.stop_if_requested("evaluate")


def test_processes_that_took_different_numbers_of_items_agree_again(asked, monkeypatch):
    ahead = []
    monkeypatch.setattr(processes, "agreed", lambda number: ahead.append(number) or number + 10)
    with interruption.apart():
        assert taken("prepare", 1) == ([0], None)
    interruption.stop_if_requested("evaluate")
    assert ahead == [asked[1]] and asked[-1] == asked[1] + 11
