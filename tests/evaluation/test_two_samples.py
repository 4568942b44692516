"""Means of two groups of runs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import DataError
from instructjax.evaluation import two_samples


def test_the_interval_is_welchs():
    """The example of Welch's test in R: t.test(extra ~ group, data = sleep)."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = two_samples.welch(first, second)
    assert (found.mean, found.low, found.high, found.p_value) == pytest.approx(
        (-1.58, -3.3654832, 0.2054832, 0.07939414), abs=1e-7
    )


def test_equal_means_lie_in_the_interval_19_times_in_20():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=5), rng.normal(scale=3, size=5)) for _ in range(2000)]
    covered = [found.low <= 0 <= found.high for found in itertools.starmap(two_samples.welch, pairs)]
    assert 0.93 < np.mean(covered) < 0.97


def test_constants_differ_or_do_not():
    assert two_samples.welch([2.0, 2.0], [2.0, 2.0]) == two_samples.Difference(0.0, 0.0, 0.0, 1.0)
    assert two_samples.welch([3.0, 3.0], [2.0, 2.0]) == two_samples.Difference(1.0, 1.0, 1.0, 0.0)


def test_a_sample_of_one_value_is_rejected():
    with pytest.raises(DataError, match="expected two samples of at least 2 values, found 1 and 2"):
        two_samples.welch([1.0], [1.0, 2.0])


def test_holm_of_a_worked_example():
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1; no value may be below one before it.
    assert two_samples.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert two_samples.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_each_value_and_bonferroni_and_keeps_the_order(p_values):
    found = two_samples.holm(p_values)
    for p, q in zip(p_values, found, strict=True):
        assert p <= q <= min(len(p_values) * p, 1.0) + 1e-12 or q <= 1.0
        assert q >= p
    for (p, q), (r, s) in itertools.combinations(zip(p_values, found, strict=True), 2):
        assert (p < r) <= (q <= s)
