import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import DataError
from instructjax.evaluation import agreement
from instructjax.records import Ranking

few = st.integers(-3, 3)


def ranking(prompt, scores, responses=None):
    responses = responses or [f"answer {k}" for k in range(len(scores))]
    return Ranking(prompt=prompt, responses=tuple(responses), scores=tuple(scores))


@st.composite
def rewarded(draw):
    k = draw(st.integers(2, 9))
    return draw(st.lists(few, min_size=k, max_size=k)), draw(st.lists(few, min_size=k, max_size=k))


@given(rewarded())
def test_credits_equal_a_loop_over_pairs(example):
    rewards, scores = example
    expected = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        if scores[i] != scores[j]:
            better, worse = (i, j) if scores[i] > scores[j] else (j, i)
            expected.append(1 if rewards[better] > rewards[worse] else 0.5 if rewards[better] == rewards[worse] else 0)
    assert agreement.pair_credits(rewards, scores).tolist() == expected


@given(rewarded(), st.floats(0.1, 10), st.integers(-5, 5))
def test_credits_depend_only_on_the_order_of_rewards(example, scale, shift):
    rewards, scores = example
    credits = agreement.pair_credits(rewards, scores)
    assert agreement.pair_credits(scale * np.array(rewards) + shift, scores).tolist() == credits.tolist()
    assert agreement.pair_credits(-np.array(rewards), scores).tolist() == (1 - credits).tolist()


def test_accuracy_counts_pairs_and_clusters_by_prompt():
    rankings = [ranking("a", [1, 2, 3]), ranking("a", [3, 2, 2]), ranking("b", [0, 1])]
    estimate = agreement.reward_accuracy(rankings, [[1, 2, 3], [1, 2, 3], [5, 5]])
    assert estimate.n == 3 + 2 + 1
    np.testing.assert_allclose(estimate.mean, (3 + 0 + 0.5) / 6)


def test_accuracy_difference_is_zero_for_equal_rewards_and_half_for_right_against_chance():
    rankings = [ranking(str(p), [1, 2, 3]) for p in range(4)]
    right, equal = [[1, 2, 3]] * 4, [[0, 0, 0]] * 4
    assert agreement.accuracy_difference(rankings, right, right).mean == 0
    assert agreement.accuracy_difference(rankings, right, equal).mean == 0.5


def test_agreement_leaves_out_pairs_that_either_labeler_ties():
    rankings = [
        ranking("a", [1, 2, 3]),
        ranking("a", [2, 1, 3]),  # disagrees on the first pair, agrees on two
        ranking("b", [1, 1, 2]),
        ranking("b", [1, 2, 2]),  # only the pair (0, 2) is untied by both
        ranking("c", [1, 2, 3]),  # ranked by one labeler only
    ]
    estimate = agreement.pairwise_agreement(rankings)
    assert estimate.n == 4
    np.testing.assert_allclose(estimate.mean, 3 / 4)


@given(st.permutations(range(5)), st.lists(few, min_size=5, max_size=5), st.lists(few, min_size=5, max_size=5))
def test_agreement_does_not_depend_on_the_order_of_answers(order, one, other):
    names = [f"answer {k}" for k in range(5)]
    base = [ranking(p, s) for p in "xy" for s in ([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])]
    shown = [ranking("a", one, names), ranking("a", other, names)]
    moved = [shown[0], ranking("a", [other[k] for k in order], [names[k] for k in order])]
    assert agreement.pairwise_agreement(base + shown) == agreement.pairwise_agreement(base + moved)


def test_pairs_of_identical_answers_are_left_out():
    same = [ranking(p, s, ["x", "x", "y"]) for p in "ab" for s in ([1, 2, 3], [2, 1, 3])]
    estimate = agreement.pairwise_agreement(same)
    assert (estimate.mean, estimate.n) == (1.0, 4)


def test_agreement_of_labelers_who_are_right_with_probability_p():
    rng, p = np.random.default_rng(0), 0.8
    rankings = [ranking(str(prompt), [0, 1] if rng.random() < p else [1, 0]) for prompt in range(1000) for _ in "12"]
    estimate = agreement.pairwise_agreement(rankings)
    assert estimate.low < p**2 + (1 - p) ** 2 < estimate.high


def test_the_length_baseline_learns_its_direction_from_training_rankings():
    short, long = "ab", "abcdef"
    test = [ranking(p, [1, 2], [long, short]) for p in "cd"]
    likes_long = [ranking("a", [1, 2], [short, long])]
    likes_short = [ranking("a", [1, 2], [long, short])]
    assert agreement.length_rewards(likes_long, test)[1] == "longer"
    assert agreement.reward_accuracy(test, agreement.length_rewards(likes_long, test)[0]).mean == 0
    assert agreement.length_rewards(likes_short, test)[1] == "shorter"
    assert agreement.reward_accuracy(test, agreement.length_rewards(likes_short, test)[0]).mean == 1


def test_errors_say_what_was_expected():
    with pytest.raises(DataError, match="expected one reward for each of 3 answers, found 2"):
        agreement.pair_credits([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="expected rewards for 1 rankings, found 0"):
        agreement.reward_accuracy([ranking("a", [1, 2])], [])
    with pytest.raises(
        DataError, match="expected at least 2 prompts with pairs that two labelers ranked and neither tied, found 0"
    ):
        agreement.pairwise_agreement([ranking("a", [1, 2]), ranking("b", [1, 2])])


def test_a_reward_model_is_compared_with_length_and_raters():
    train = [ranking("t", [1, 2], ["long answer", "short"])]
    single = [ranking(p, s, ["long answer", "short"]) for p in "abcd" for s in ([1, 2], [1, 2] if p != "d" else [2, 1])]
    averaged = [ranking(p, [1, 2], ["long answer", "short"]) for p in "abc"]
    found = agreement.compare_with_raters(
        train, single, averaged, lambda rankings: [np.array([1.0, 0.0])] * len(rankings)
    )
    assert found["length_prefers"] == "shorter"
    assert {name: e["mean"] for name, e in found["accuracy"]["averaged"].items()} == {
        "reward_model": 0.0,
        "length": 1.0,
        "difference": -1.0,
    }
    assert {name: e["mean"] for name, e in found["accuracy"]["single"].items()} == {
        "reward_model": 1 / 8,
        "length": 7 / 8,
        "difference": -6 / 8,
        "raters": 3 / 4,
    }


def test_calibration_is_the_accuracy_by_margin():
    rankings = [Ranking(prompt=str(i), responses=("a", "b", "c"), scores=(2.0, 1.0, 1.0)) for i in range(2)]
    rewards = [np.array([1.0, 0.0, 3.0]), np.array([0.5, 0.5, 0.0])]
    # Untied pairs: margins 1 (right), 2 (wrong), 0 (equal rewards: half), 0.5 (right).
    low, high = agreement.calibration(rankings, rewards, bins=2)
    assert (low["margin"], low["right"], low["n"]) == (0.25, 0.75, 2)
    assert (high["margin"], high["right"], high["n"]) == (1.5, 0.5, 2)
    assert high["predicted"] == pytest.approx((1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-2))) / 2)
    assert sum(part["n"] for part in agreement.calibration(rankings, rewards)) == 4
