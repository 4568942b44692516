"""Faults of others when a run resumes: each makes it end differently from an uninterrupted one."""

import shutil

import jax
import jax.numpy as jnp
import optax
import pytest

from instructjax.runs import checkpoint
from instructjax.training import optimizer
from instructjax.training import state as train_state
from instructjax.training.step import train_step
from tests.runs import test_loop
from tests.training.test_optimizer import CONFIG

ADAM = optimizer.adam(CONFIG, optimizer.cosine_schedule(0.05, test_loop.STEPS), weight_decay=0.0)


@jax.jit
def step(state, batch, key, decay):
    state, found = train_step(test_loop.loss, ADAM)(state, batch, key)
    return train_state.update_average(state, decay), found


@pytest.fixture(scope="module", autouse=True)
def same_optimizer():
    """Uses a learning rate that changes, so that its schedule can be lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_loop, "ADAM", ADAM)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    test_loop.run(directory, step=step)
    return directory


@pytest.fixture(scope="module")
def resume(tmp_path_factory, whole):
    """Returns a function that resumes a stopped run with a fault, `fault(state, iterator, start)`."""
    stopped = tmp_path_factory.mktemp("stopped")
    with pytest.raises(test_loop.Stopped):
        test_loop.run(stopped, step=test_loop.failing_at(step, 6))
    restore = checkpoint.Checkpoints.restore

    def resumed(fault):
        directory = shutil.copytree(stopped, tmp_path_factory.mktemp("resumed"), dirs_exist_ok=True)

        def faulty(self, template, *, iterator):
            start = iterator.get_state()
            state, meta = restore(self, template, iterator=iterator)
            return fault(state, iterator, start), meta

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.Checkpoints, "restore", faulty)
            test_loop.run(directory, step=step)
        return directory

    test_loop.assert_same_run(resumed(lambda state, iterator, start: state), whole)
    return resumed


def test_the_optimizer_state_is_lost(resume, whole):
    directory = resume(lambda state, iterator, start: state.replace(opt_state=ADAM.init(state.params)))
    with pytest.raises(AssertionError):
        test_loop.assert_same_run(directory, whole)


def test_the_learning_rate_schedule_restarts(resume, whole):
    """Keeps Adam's moments; only the count of the schedule is 0 again."""

    def restarted(state, iterator, start):
        clip, (moments, decay, schedule) = state.opt_state
        assert isinstance(schedule, optax.ScaleByScheduleState) and int(schedule.count) == 4
        schedule = schedule._replace(count=jnp.zeros_like(schedule.count))
        return state.replace(opt_state=(clip, (moments, decay, schedule)))

    directory = resume(restarted)
    with pytest.raises(AssertionError):
        test_loop.assert_same_run(directory, whole)


def test_data_is_skipped(resume, whole):
    """The saved position is one batch ahead of the training."""

    def ahead(state, iterator, start):
        next(iterator)
        return state

    directory = resume(ahead)
    with pytest.raises(AssertionError):
        test_loop.assert_same_run(directory, whole)


def test_data_is_repeated(resume, whole):
    """The position is not restored."""

    def begun_again(state, iterator, start):
        iterator.set_state(start)
        return state

    directory = resume(begun_again)
    with pytest.raises(AssertionError):
        test_loop.assert_same_run(directory, whole)


def test_random_numbers_are_repeated(resume, whole):
    """The number that is folded into the key is 0 again."""
    directory = resume(lambda state, iterator, start: state.replace(step=jnp.zeros_like(state.step)))
    with pytest.raises(AssertionError):
        test_loop.assert_same_run(directory, whole)
