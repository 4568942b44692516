"""Episodes that share rows: each token once, in order, and the filled rows in the first parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructjax.batch import Episodes
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import consistency, episode, packing, sampling
from instructjax.training.rows import merge_interleaved, split_interleaved
from tests import fakes

P, R, B, PARTS = 5, 4, 8, 4
LENGTHS = st.lists(st.tuples(st.integers(1, P), st.integers(0, R)), min_size=B, max_size=B)


def padded(lengths, seed=0):
    """Draws episodes with so many tokens of prompt and response."""
    tokens, segments = np.zeros((B, P + R), np.int32), np.zeros((B, P + R), np.int32)
    rng = np.random.default_rng(seed)
    for row, (prompt, response) in enumerate(lengths):
        segments[row, P - prompt : P + response] = 1
    tokens = np.where(segments, rng.integers(2, 16, size=segments.shape), 0).astype(np.int32)
    mask = segments[:, P:].astype(np.float32)
    log_probs = mask * rng.normal(size=mask.shape).astype(np.float32)
    positions = np.asarray(sampling.positions_of(segments))
    return Episodes(tokens, segments, positions, mask, log_probs, group=np.arange(B, dtype=np.int32))


@jax.jit
def packed(episodes):
    plan = packing.plan(episodes.segments, PARTS)
    rows = plan.episodes(episodes)
    return plan, rows, consistency.packing_mismatches(rows, episodes, plan)


def first_fit(lengths):
    """Packs on the host, in plain Python."""
    free = []
    for length in sorted(map(sum, lengths), reverse=True):
        row = next((i for i, left in enumerate(free) if left >= length), len(free))
        free[row:] = free[row:] or [P + R]
        free[row] -= length
    return len(free)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
@example([(P, R)] * B)  # every episode fills its row
@example([(1, 0)] * B)  # nothing but prompts of one token
@example([(1, R), (P, 0), (1, 1), (P, R), (2, 2), (1, 0), (P, 1), (3, R)])
def test_every_token_lies_in_one_cell(lengths):
    episodes = padded(lengths)
    plan, rows, mismatches = packed(episodes)
    assert mismatches == 0
    # The filled rows are those of the first parts, and no more than first fit needs.
    filled = np.asarray(split_interleaved(rows.segments, PARTS)).reshape(B, -1).any(axis=1)
    assert filled.tolist() == [True] * first_fit(lengths) + [False] * (B - first_fit(lengths))
    for x in (rows.response_mask, rows.log_probs):
        assert x.shape == (B, P + R - 1)
    np.testing.assert_array_equal(plan.unpack_responses(rows.log_probs, R), episodes.log_probs)
    np.testing.assert_array_equal(plan.unpack(rows.tokens), episodes.tokens)
    np.testing.assert_allclose(rows.log_probs.sum(), episodes.log_probs.sum(), atol=1e-5)


RAGGED = [(1, R), (P, 0), (1, 1), (P, R), (2, 2), (1, 0), (P, 1), (3, R)]


@functools.cache
def reading(kind):
    def read(params, episodes):
        if kind is ScalarModel:
            return episode.response_values(ScalarModel(fakes.CONFIG), params, episodes)
        return episode.response_log_probs_and_entropy(LanguageModel(fakes.CONFIG), params, episodes, 0.7)

    return jax.jit(read)


@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
def test_networks_read_in_packed_rows_what_they_read_in_padded_rows(kind):
    episodes, params = padded(RAGGED), fakes.params(kind(fakes.CONFIG))
    plan, rows, _ = packed(episodes)
    found = plan.unpack_responses(reading(kind)(params, rows), R)
    expected = reading(kind)(params, episodes)
    assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6), found, expected)


def test_parts_without_an_episode_are_skipped():
    """Counts the parts that were read by a number that only those have."""
    _, rows, _ = packed(padded([(1, 1)] * B))
    read = packing.skip_empty(lambda part: part.segments * 0 + 1)
    found = merge_interleaved(jax.lax.map(read, split_interleaved(rows, PARTS)))
    assert first_fit([(1, 1)] * B) == 2
    assert found.any(axis=1).sum() == B // PARTS  # the rows of one part


def swapped(rows, plan):
    return rows.replace(tokens=rows.tokens[:, ::-1])


def joined(rows, plan):
    """Gives all episodes of a row one number, so that they see each other."""
    return rows.replace(segments=jnp.minimum(rows.segments, 1))


def counted_through(rows, plan):
    return rows.replace(positions=jnp.broadcast_to(jnp.arange(P + R), rows.positions.shape))


def shifted(rows, plan):
    return rows.replace(response_mask=jnp.roll(rows.response_mask, 1, axis=1))


def padding_learned(rows, plan):
    return rows.replace(response_mask=jnp.where(rows.segments[:, 1:] == 0, 1.0, rows.response_mask))


def doubled(rows, plan):
    """Puts a second copy of an episode into an empty row."""
    empty = jnp.argmin(rows.segments.max(axis=1))
    return rows.replace(segments=rows.segments.at[empty].set(rows.segments[0]))


@pytest.mark.parametrize("fault", [swapped, joined, counted_through, shifted, padding_learned, doubled])
def test_faults_of_packing_are_counted(fault):
    episodes = padded(RAGGED)
    plan, rows, mismatches = packed(episodes)
    assert mismatches == 0
    assert consistency.packing_mismatches(fault(rows, plan), episodes, plan) > 0


def test_an_episode_in_two_rows_or_out_of_order_is_counted():
    """Moves the tokens of a consistent packing, so that only their places are wrong."""
    episodes = padded(RAGGED)
    plan, *_ = packed(episodes)
    reversed_cells = jnp.where(plan.cells < plan.cells.size, plan.cells.size - 1 - plan.cells, plan.cells)
    moved = plan.replace(cells=reversed_cells, sources=plan.sources.reshape(-1)[::-1].reshape(B, -1))
    assert consistency.packing_mismatches(moved.episodes(episodes), episodes, moved) > 0
