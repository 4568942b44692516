"""One forward pass per prompt gives the loss and gradient of one forward pass per answer, in float64."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data import bin_packing
from instructjax.models.transformer import ScalarModel
from instructjax.testing import laws, strategies
from instructjax.training import objectives
from tests import fakes, oracles

ROOM, ROWS, ANSWERS, SIZE = 32, 3, 4, 5  # tokens of a row, rows, most answers, most tokens of a prompt or an answer
rankings = strategies.tokenized_rankings(answers=ANSWERS, most=SIZE)


@functools.cache
def losses_of(local_window):
    """Returns the losses (packed, naive), cached so that each is compiled once."""
    model = ScalarModel(fakes.float64_config(local_window=local_window))
    return objectives.ranking_loss(model), oracles.naive_loss(model)


@settings(deadline=None, max_examples=40)
@given(st.lists(rankings, min_size=1, max_size=ROWS), st.sampled_from([None, 3]))
def test_loss_and_gradient_are_those_of_a_forward_pass_for_each_answer(rankings, local_window):
    packed_loss, naive_loss = losses_of(local_window)
    rows = bin_packing.first_fit_decreasing([len(ranking) for ranking in rankings], ROOM)
    rows = [[rankings[i] for i in row] for row in [*rows, *[[]] * (ROWS - len(rows))]]
    packed = oracles.packed(rows, length=ROOM, prompts=3, answers=ANSWERS)
    naive = oracles.naive(rankings, length=2 * SIZE, answers=ANSWERS, prompts=ROWS)
    laws.losses_agree(packed_loss, naive_loss, fakes.float64_params(ScalarModel, seed=1), packed, naive)
