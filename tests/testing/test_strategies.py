"""The strategies draw what they describe, including cases that losses get wrong."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import find, given, settings

from instructjax.testing import strategies

B, T, S, K, P, R, V = 3, 24, 2, 3, 3, 4, 16
examples = settings(max_examples=50, deadline=None)


@examples
@given(strategies.masked_arrays(2, B, R))
def test_masks_are_runs_of_ones(drawn):
    *arrays, mask = drawn
    assert [x.shape for x in drawn] == [(B, R)] * 3 and {x.dtype.name for x in arrays} == {"float64"}
    assert (np.diff(mask, axis=1) <= 0).all() and set(mask.flat) <= {0, 1}


@examples
@given(strategies.masks(B, R, shortest=2))
def test_masks_have_a_shortest_run(mask):
    assert (mask.sum(axis=1) >= 2).all()


@examples
@given(strategies.packed_texts(B, T))
def test_texts_follow_each_other_in_a_row(batch):
    assert {x.shape for x in jax.tree.leaves(batch)} == {(B, T)}
    assert 0 <= batch.tokens.min() and batch.tokens.max() < V
    for segments, positions, weights in zip(batch.segments, batch.positions, batch.weights, strict=True):
        numbers = segments[segments > 0]
        assert (segments[: len(numbers)] > 0).all()
        assert set(np.diff(numbers, prepend=0)) <= {0, 1}
        for number in set(numbers):
            assert positions[segments == number].tolist() == list(range((segments == number).sum()))
        assert not weights[positions == 0].any()


@examples
@given(strategies.packed_rankings(B, T, S, K))
def test_rankings_are_laid_out_as_the_package_does(batch):
    assert batch.tokens.shape == (B, T) and batch.valid.shape == (B, S, K)
    for b, s, k in zip(*np.nonzero(batch.valid), strict=True):
        end = batch.ends[b, s, k]
        assert (batch.segments[b, end], batch.branches[b, end]) == (s + 1, k + 1)
    assert set(batch.valid.sum(axis=2).flat) <= {0, 2, 3}


@examples
@given(strategies.episodes(B, P, R))
def test_episodes_end_with_eos_or_fill_their_rows(batch):
    assert batch.tokens.shape == (B, P + R) and batch.group.tolist() == list(range(B))
    np.testing.assert_array_equal(batch.response_mask, batch.segments[:, P:])
    assert batch.segments[:, P - 1 : P + 1].all()  # the end of a prompt, and a token of a response
    for row in range(B):
        inside = batch.segments[row] > 0
        assert batch.positions[row, inside].tolist() == list(range(inside.sum()))
        assert not batch.tokens[row, ~inside].any()
        response = batch.tokens[row, P:][inside[P:]].tolist()
        assert 1 not in response[:-1]
        assert response[-1] == 1 or len(response) == R


@pytest.mark.parametrize(
    ("strategy", "case"),
    [
        (strategies.masks(B, R), lambda mask: not mask[0].any() and mask[1].all()),
        (strategies.rankings(B, K), lambda drawn: drawn[2][0].all() and len(set(drawn[1][0])) == 2),
        (strategies.rankings(B, K), lambda drawn: not drawn[2][0, 0] and drawn[2][0, 1]),
        (strategies.packed_texts(B, T), lambda batch: batch.segments[0].max() == 3 and not batch.segments[1].any()),
        (strategies.packed_rankings(B, T), lambda batch: batch.valid[0].all() and len(set(batch.scores[0, 0])) == 2),
        (strategies.episodes(B, P, R), lambda batch: 0 in batch.tokens[0, P:][batch.response_mask[0] > 0]),
        (strategies.episodes(B, P, R), lambda batch: batch.tokens[0, -1] > 1),
    ],
    ids=["an empty row", "a tie", "a missing answer", "packed", "packed with a tie", "PAD as a token", "not ended"],
)
def test_hard_cases_are_drawn(strategy, case):
    find(strategy, case, settings=settings(database=None, deadline=None, max_examples=5000))


def test_without_hypothesis_the_extra_is_named():
    program = "import sys; sys.modules['hypothesis'] = None; import instructjax.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: instructjax.testing: expected the package hypothesis, found none; "
        "install it with: pip install 'instructjax[test]'"
    )
