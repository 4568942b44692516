"""Tests that sequences are packed whole and once each, according to the rule of each algorithm."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import bin_packing

CAPACITY = 12
lengths = st.lists(st.integers(1, CAPACITY), max_size=30)


@pytest.mark.parametrize("fit", [bin_packing.first_fit_decreasing, bin_packing.next_fit])
@given(lengths)
def test_every_sequence_is_in_one_row_and_no_row_overflows(fit, lengths):
    rows = fit(lengths, CAPACITY)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= CAPACITY for row in rows)


@given(lengths)
def test_first_fit_decreasing_opens_a_row_only_if_no_earlier_row_has_room(lengths):
    rows = bin_packing.first_fit_decreasing(lengths, CAPACITY)
    placed = [(-lengths[index], index) for index in range(len(lengths))]
    assert all(row == sorted(row, key=lambda index: placed[index]) for row in rows)
    for number, row in enumerate(rows):
        for index in row:
            for earlier in rows[:number]:
                before = sum(lengths[i] for i in earlier if placed[i] < placed[index])
                assert before + lengths[index] > CAPACITY


@given(lengths)
def test_next_fit_keeps_the_order_and_opens_a_row_only_if_the_last_has_no_room(lengths):
    rows = bin_packing.next_fit(lengths, CAPACITY)
    assert list(itertools.chain(*rows)) == list(range(len(lengths)))
    for row, following in itertools.pairwise(rows):
        assert sum(lengths[i] for i in row) + lengths[following[0]] > CAPACITY
