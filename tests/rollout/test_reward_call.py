"""A call of a reward function is tried again after errors that pass, and need not be waited for."""

import threading

import pytest

from instructjax.errors import RewardFunctionError
from instructjax.rollout.reward_call import Call, Limits
from instructjax.rollout.reward_function import RewardFunction

LONG = 60.0


def call(function, *, retries=2, timeout=0.0):
    limits = Limits(retries=retries, retry_seconds=0.01, timeout_seconds=timeout)
    return Call(RewardFunction(function, "judge.py:score", "", False), limits, ["a"], ["b"], [{}])


def failing(*errors):
    """Returns a function that raises these errors, one at each call, and then gives a score."""
    left = list(errors)

    def score(prompts, responses):
        if left:
            raise left.pop(0)
        return [7.0]

    return score


@pytest.mark.parametrize("error", [TimeoutError("no answer in 30 s"), ConnectionRefusedError("busy")])
def test_it_is_tried_again_after_an_error_of_the_connection(capsys, error):
    asked = call(failing(error, error))
    assert asked.wait(LONG) and asked.scores() == [7.0]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: judge.py:score: ") and str(error) in first
    assert first.endswith("trying again in 0.01 s (1 of 2)") and second.endswith("(2 of 2)")


@pytest.mark.parametrize("errors", [[TimeoutError("a")] * 3, [TimeoutError("a"), ValueError("a")]])
def test_it_is_not_tried_again_too_often_or_after_other_errors(errors):
    asked = call(failing(*errors))
    assert asked.wait(LONG)
    with pytest.raises(RewardFunctionError, match=f"found {type(errors[-1]).__name__}: a"):
        asked.scores()


class Broken:
    """Fails in a way that no reward function should."""

    name = "judge.py:score"

    def __call__(self, *_):
        raise RuntimeError("lost")


def test_a_thread_that_fails_in_any_way_is_not_waited_for():
    asked = Call(Broken(), Limits(retries=0, retry_seconds=0.0, timeout_seconds=0.0), ["a"], ["b"], [{}])
    assert asked.wait(LONG)
    with pytest.raises(RewardFunctionError, match="^judge.py:score: RuntimeError: lost$"):
        asked.scores()


@pytest.mark.parametrize("timeout", [0.0, float("inf")])
def test_without_a_limit_it_is_waited_for(timeout):
    release = threading.Event()
    asked = call(lambda prompts, responses: [float(release.wait(LONG))], timeout=timeout)
    assert not asked.wait(0.05)
    release.set()
    assert asked.wait(LONG) and asked.scores() == [1.0]


def test_a_call_beyond_its_limit_is_left_behind():
    release = threading.Event()
    asked = call(lambda prompts, responses: [float(release.wait(LONG))], timeout=0.02)
    assert asked.wait(0.1)
    with pytest.raises(RewardFunctionError) as error:
        asked.scores()
    assert str(error.value) == (
        "judge.py:score: expected a finite number for each of 1 responses within 0.02 s "
        "(reward_timeout_seconds), found no answer"
    )
    release.set()
