"""One forward pass for all answers to a prompt: the loss and gradient of one for each answer, in float64."""

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data import bin_packing
from instructjax.data.layouts import TokenizedRanking
from instructjax.models.transformer import ScalarModel
from instructjax.training import objectives
from tests import naive_rankings
from tests.float64_gradients import SCALAR, assert_same, changed, sums

ROOM, ROWS, ANSWERS, SIZE = 32, 3, 4, 5  # tokens of a row, rows, most answers, most tokens of a prompt or an answer
texts = st.lists(st.integers(0, 15), min_size=1, max_size=SIZE)


@st.composite
def rankings(draw):
    """Of two to four answers, many of them tied."""
    answers = draw(st.lists(texts, min_size=2, max_size=ANSWERS))
    scores = draw(st.lists(st.integers(0, 2), min_size=len(answers), max_size=len(answers)))
    return TokenizedRanking(draw(texts), answers, [float(score) for score in scores])


@functools.cache
def losses_of(local_window):
    """(packed, naive), each once, so that each is compiled once."""
    model = ScalarModel(changed(local_window=local_window))
    return objectives.ranking_loss(model), naive_rankings.naive_loss(model)


@settings(deadline=None, max_examples=40)
@given(st.lists(rankings(), min_size=1, max_size=ROWS), st.sampled_from([None, 3]))
def test_loss_and_gradient_are_those_of_a_forward_pass_for_each_answer(rankings, local_window):
    packed_loss, naive_loss = losses_of(local_window)
    rows = bin_packing.first_fit_decreasing([len(ranking) for ranking in rankings], ROOM)
    rows = [[rankings[i] for i in row] for row in [*rows, *[[]] * (ROWS - len(rows))]]
    packed = naive_rankings.packed(rows, length=ROOM, prompts=3, answers=ANSWERS)
    naive = naive_rankings.naive(rankings, length=2 * SIZE, answers=ANSWERS, prompts=ROWS)
    found, expected = (sums(loss, SCALAR, batch) for loss, batch in ((packed_loss, packed), (naive_loss, naive)))
    assert float(found[0][1]) == float(expected[0][1])
    if float(expected[0][1]):  # else all tied: no gradient to compare with
        assert_same(found, expected)
    else:
        np.testing.assert_array_equal(float(found[1][0]), 0.0)
