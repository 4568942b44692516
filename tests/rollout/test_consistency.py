"""The consistency measures are 0 for correct episodes, and positive if any cell is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from instructjax import losses
from instructjax.batch import Episodes
from instructjax.errors import InvariantError
from instructjax.rollout import consistency, episode

PAD, EOS = 0, 1
B, P, R = 4, 3, 4

mismatches = jax.jit(lambda rows: consistency.mask_mismatches(rows, EOS))
score_read_error = jax.jit(lambda *given: consistency.score_read_error(*given, EOS))
reward_placement_error = jax.jit(lambda *given: consistency.reward_placement_error(*given, EOS))


@st.composite
def sound(draw):
    """Builds episodes from their definition, row by row; a sampled token may be PAD, and a prompt may hold EOS."""
    tokens, segments = np.full((B, P + R), PAD, np.int32), np.zeros((B, P + R), np.int32)
    positions, mask = np.zeros((B, P + R), np.int32), np.zeros((B, R), np.float32)
    for row in range(B):
        prompt = draw(st.lists(st.integers(0, 9), min_size=1, max_size=P))
        size = draw(st.integers(1, R))
        response = draw(st.lists(st.sampled_from([PAD, 5, 6, 7]), min_size=size, max_size=size))
        if size < R or draw(st.booleans()):
            response[-1] = EOS
        inside = slice(P - len(prompt), P + size)
        tokens[row, inside] = prompt + response
        segments[row, inside] = 1
        positions[row, inside] = np.arange(len(prompt) + size)
        mask[row, :size] = 1
    return Episodes(tokens, segments, positions, mask, np.zeros((B, R), np.float32), np.arange(B))


cells = st.tuples(st.integers(0, B - 1), st.integers(0, P + R - 1))


@settings(deadline=None)
@given(sound(), cells, st.sampled_from(["segments", "response_mask", "positions"]), st.sampled_from([-1, 1, 3]))
def test_any_one_wrong_cell_is_counted(rows, cell, field, shift):
    assert mismatches(rows) == 0
    row, column = cell
    wrong = getattr(rows, field).copy()
    column %= wrong.shape[1]
    if field == "positions":
        assume(rows.segments[row, column])  # those of padding are not read
        wrong[row, column] += shift
    else:
        wrong[row, column] = 1 - wrong[row, column]
    assert mismatches(dataclasses.replace(rows, **{field: wrong})) >= 1


@settings(deadline=None)
@given(sound(), st.integers(0, B - 1), st.integers(0, P + R - 1))
def test_the_score_belongs_to_the_last_produced_token(rows, row, column):
    outputs = np.random.default_rng(0).normal(size=(B, P + R)).astype(np.float32)
    scores = np.array(episode.at_last_token(outputs, rows.segments))
    assert score_read_error(scores, outputs, rows) == 0
    wrong = scores.copy()
    wrong[row] = outputs[row, column]
    np.testing.assert_allclose(score_read_error(wrong, outputs, rows), abs(wrong[row] - scores[row]), rtol=1e-6)
    assert (column == P + int(rows.response_mask[row].sum()) - 1) == (wrong[row] == scores[row])


@settings(deadline=None)
@given(sound(), st.integers(0, B - 1), st.integers(0, R - 1), st.floats(-2, 2, width=32))
def test_a_wrong_reward_is_reported_with_the_size_of_its_error(rows, row, column, shift):
    rng = np.random.default_rng(0)
    log_probs, reference = rng.normal(size=(2, B, R)).astype(np.float32) * rows.response_mask
    scores = rng.normal(size=B).astype(np.float32)
    rewards = np.array(losses.kl_rewards(scores, log_probs, reference, rows.response_mask, 0.1))
    penalties = 0.1 * (log_probs - reference)
    np.testing.assert_allclose(reward_placement_error(rewards, scores, penalties, rows), 0, atol=1e-6)
    rewards[row, column] += shift
    np.testing.assert_allclose(reward_placement_error(rewards, scores, penalties, rows), abs(shift), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, bool])
def test_only_floating_point_numbers_pass(dtype):
    consistency.require_floating(scores=jnp.zeros(3), values=jnp.zeros(3, jnp.bfloat16))
    with pytest.raises(InvariantError, match=r"^values: expected floating-point numbers, found \w+$"):
        consistency.require_floating(scores=jnp.zeros(3), values=jnp.zeros(3, dtype))
