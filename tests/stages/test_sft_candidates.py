"""The SFT checkpoints among which the reward model chooses."""

import ml_collections
from hypothesis import given
from hypothesis import strategies as st

from instructjax.stages import selection


def candidates(count, save_every, steps):
    config = ml_collections.ConfigDict({"sft": {"candidates": count}, "log": {"save_every": save_every}})
    return selection.candidates(config, steps)


@given(st.integers(1, 12), st.integers(1, 300), st.integers(1, 2000))
def test_every_candidate_is_a_checkpoint_of_the_run(count, save_every, steps):
    found = candidates(count, save_every, steps)
    assert found == sorted(set(found)) and found[-1] == steps
    assert len(found) <= count
    assert all(step % save_every == 0 and 0 < step < steps for step in found[:-1])


def test_candidates_are_evenly_spaced():
    assert candidates(4, 20, 400) == [100, 200, 300, 400]
    assert candidates(4, 50, 310) == [50, 150, 200, 310]
    assert candidates(4, 500, 310) == [310]
    assert candidates(1, 50, 310) == [310]
