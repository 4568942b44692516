"""Properties of the schedule of a run."""

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import ConfigError
from instructjax.runs.schedule import Due, Schedule

LOG = ml_collections.ConfigDict({"every": 2, "save_every": 4, "evaluate_every": 6, "keep": 1, "profile_steps": 0})


@st.composite
def schedules(draw):
    every = draw(st.integers(1, 30))
    return Schedule(
        steps=draw(st.integers(1, 200)),
        every=every,
        save_every=draw(st.integers(1, 60)),
        evaluate_every=every * draw(st.integers(1, 5)),
        keep=draw(st.integers(1, 5)),
    )


def dues(schedule):
    return {step: schedule.due(step) for step in range(1, schedule.steps + 1)}


@given(schedules())
def test_only_the_last_step_is_the_last_and_everything_is_due_after_it(schedule):
    *before, last = dues(schedule).values()
    assert last == Due(report=True, evaluate=True, save=True, last=True)
    assert not any(due.last for due in before)


@given(schedules())
def test_intervals_have_their_declared_lengths(schedule):
    found = dues(schedule)
    for name, interval in [("report", schedule.every), ("evaluate", schedule.evaluate_every)]:
        steps = [step for step, due in found.items() if getattr(due, name)]
        assert steps[:-1] == list(range(interval, schedule.steps, interval))
    saved = [step for step, due in found.items() if due.save]
    assert saved[:-1] == list(range(schedule.save_every, schedule.steps, schedule.save_every))


@given(schedules())
def test_an_evaluated_step_is_reported(schedule):
    assert all(due.report for due in dues(schedule).values() if due.evaluate)


@given(schedules(), st.integers(1, 200))
def test_a_longer_run_has_the_same_schedule_until_the_shorter_one_ends(schedule, more):
    longer = Schedule(
        schedule.steps + more, schedule.every, schedule.save_every, schedule.evaluate_every, schedule.keep
    )
    assert all(longer.due(step) == schedule.due(step) for step in range(1, schedule.steps))


def test_from_a_config():
    found = Schedule.from_config(LOG, steps=9, keep_steps=[3, 5])
    assert found == Schedule(steps=9, every=2, save_every=4, evaluate_every=6, keep=1, keep_steps=(3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "ppo_log.every: expected an integer from 1 to 30, found 0"),
        ({"every": 31}, "ppo_log.every: expected an integer from 1 to 30, found 31"),
        ({"save_every": 0}, "ppo_log.save_every: expected an integer, at least 1, found 0"),
        ({"evaluate_every": 3}, "ppo_log.evaluate_every: expected a multiple of ppo_log.every (2), found 3"),
        ({"keep": 0}, "ppo_log.keep: expected an integer, at least 1, found 0"),
    ],
)
def test_intervals_that_do_not_fit_are_rejected(change, message):
    with pytest.raises(ConfigError) as error:
        Schedule.from_config(ml_collections.ConfigDict({**LOG.to_dict(), **change}), steps=9, section="ppo_log")
    assert str(error.value) == message
