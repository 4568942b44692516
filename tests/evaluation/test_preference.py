import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import DataError
from instructjax.evaluation.preference import outcomes, win_rate

scores = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=2, max_size=40)


@given(scores)
def test_the_win_rates_of_two_models_add_up_to_one(pairs):
    a, b = np.array(pairs).T
    prompts = np.arange(len(a)) // 2 if len(a) > 2 else np.arange(len(a))
    first, second = win_rate(outcomes(a, b), prompts), win_rate(outcomes(b, a), prompts)
    np.testing.assert_allclose(first.mean + second.mean, 1)
    np.testing.assert_allclose(first.high + second.low, 1)


def test_a_tie_counts_half():
    assert outcomes([3, 2, 1], [1, 2, 3]).tolist() == [1.0, 0.5, 0.0]
    assert win_rate([1, 1, 0.5, 0], ["a", "b", "c", "d"]).mean == 0.625


def test_all_comparisons_on_a_prompt_are_one_cluster():
    several = win_rate([1, 1, 1, 0, 0, 0], ["a", "a", "a", "b", "b", "b"])
    one_each = win_rate([1, 0], ["a", "b"])
    np.testing.assert_allclose([several.low, several.high], [one_each.low, one_each.high])


def test_outcomes_other_than_win_tie_and_loss_are_rejected():
    with pytest.raises(DataError, match="expected outcomes 0, 0.5 or 1, found 0.7"):
        win_rate([1, 0.7], ["a", "b"])
