"""Intervals over prompts for the laws of over-optimization, extrapolation, trends, and gaps of curves."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from instructjax.errors import DataError
from instructjax.evaluation import law_bootstrap
from instructjax.evaluation.law_bootstrap import Curve, resample
from instructjax.evaluation.overoptimization import Fit

PROMPTS = [f"prompt {i}" for i in range(40)]
KL = np.array([0.0, 0.2, 0.5, 1.0, 1.6, 2.2, 3.0, 4.0])
LAWS = ["best of n", "rl"]


def curve(law, alpha, beta, noise=0.0, kl=KL, seed=0):
    """A curve of a law; prompts differ in the reward at the start, and in the noise of each point."""
    rng = np.random.default_rng(seed)
    gold = np.linspace(0, 1, len(PROMPTS)) + Fit(law, alpha, beta, 1.0).predict(kl)[:, None]
    gold = gold + noise * rng.normal(size=gold.shape) * (kl > 0)[:, None]
    return Curve(np.repeat(kl[:, None], len(PROMPTS), axis=1), gold, gold)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda names: len(set(names)) > 1))
def test_weights_sum_to_1_and_are_equal_within_a_cluster(names):
    weights = resample(names, draws=20)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0], 1 / len(names))
    for name in set(names):
        members = weights[:, np.array(names) == name]
        np.testing.assert_array_equal(members, members[:, :1].repeat(members.shape[1], axis=1))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(size=400)
    weights = resample(range(400), draws=4_000)
    found = law_bootstrap.interval(weights @ values, 400)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)


def test_one_prompt_has_no_interval():
    with pytest.raises(DataError, match="^clusters: expected at least 2 different ones, found 1$"):
        resample(["a", "a"], draws=3)


@settings(max_examples=20)
@given(st.sampled_from(LAWS), st.floats(0.1, 3), st.floats(0.01, 1))
def test_every_draw_of_an_exact_law_has_its_coefficients(law, alpha, beta):
    weights = resample(PROMPTS, draws=5)
    found = law_bootstrap.coefficients(law, curve(law, alpha, beta), weights)
    np.testing.assert_allclose(found, np.tile([alpha, beta], (6, 1)), atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_an_exact_law_is_extrapolated_exactly(law):
    found = law_bootstrap.extrapolate(law, curve(law, 0.4, 0.1), resample(PROMPTS, draws=20))
    expected = Fit(law, 0.4, 0.1, 1.0).predict(KL[-1:])[0]
    assert (found.kl, found.predicted, found.measured) == pytest.approx((4.0, expected, expected))
    assert (found.low, found.high) == pytest.approx((expected, expected))


def test_a_curve_that_leaves_its_law_is_not_inside_the_interval():
    exact = curve("rl", 0.4, 0.1, noise=0.02)
    gold = exact.gold.copy()
    gold[-1] -= 0.3
    found = law_bootstrap.extrapolate("rl", dataclasses.replace(exact, gold=gold), resample(PROMPTS, draws=200))
    assert not found.is_inside and found.measured < found.low < found.predicted < found.high


def test_95_percent_of_intervals_have_the_measured_gain():
    weights = resample(PROMPTS, draws=150)
    inside = [
        law_bootstrap.extrapolate("rl", curve("rl", 0.4, 0.1, noise=0.2, seed=seed), weights).is_inside
        for seed in range(100)
    ]
    assert 87 <= sum(inside) <= 100  # of 95 expected ones; percentiles of 40 prompts are a little narrow


def test_too_few_points_with_small_kl_are_not_extrapolated():
    few = curve("rl", 0.4, 0.1, kl=np.array([0.0, 1.0, 1.5, 4.0]))
    with pytest.raises(DataError, match="^kl: expected at least 3 different values above 0"):
        law_bootstrap.extrapolate("rl", few, resample(PROMPTS, draws=3))


@given(arrays.arrays(np.float64, (3, 2), elements=st.floats(-2, 2)))
def test_a_trend_finds_the_slopes_that_made_the_coefficients(slopes):
    features = np.array([(size, count) for size in (13, 15, 17) for count in (9, 10, 11, 12)], float)
    fitted = (np.c_[np.ones(12), features] @ slopes)[None].repeat(3, axis=0)
    np.testing.assert_allclose(law_bootstrap.trend(fitted, features), slopes[None].repeat(3, axis=0), atol=1e-9)


def test_reward_models_of_one_size_have_no_trend_over_sizes():
    features = np.array([(13.0, count) for count in (9, 10, 11)])
    with pytest.raises(DataError, match="^features: expected reward models that differ in each of the 2 features"):
        law_bootstrap.trend(np.zeros((1, 3, 2)), features)


@pytest.mark.parametrize("law", LAWS)
def test_a_trend_over_other_reward_models_predicts_an_unseen_one(law):
    weights = resample(PROMPTS, draws=10)
    features = np.array([[13.0, 9.0], [13.0, 10.0], [15.0, 9.0], [15.0, 10.0]])

    def coefficients(size, count):
        return 0.1 + 0.02 * size + 0.01 * count, 0.3 - 0.01 * size - 0.005 * count

    fitted = [law_bootstrap.coefficients(law, curve(law, *coefficients(*one)), weights) for one in features]
    slopes = law_bootstrap.trend(np.stack(fitted, axis=1), features)
    unseen = curve(law, *coefficients(17.0, 10.0))
    found = law_bootstrap.predict_unseen(law, unseen, weights, slopes, np.array([17.0, 10.0]))
    assert found.predicted == pytest.approx(found.measured)


def test_the_fall_is_the_distance_to_the_peak_and_0_before_it():
    weights = resample(PROMPTS, draws=3)
    dense = curve("best of n", 1.0, 0.25, kl=np.linspace(0, 4, 401) ** 2)
    # d (1 - d / 4) is largest at d = 2, where it is 1. At d = 3 it is 3 / 4.
    found = law_bootstrap.fall(dense, weights, np.array([9.0, 3.0, 4.0, 16.0]))
    np.testing.assert_allclose(found, [0.25, 0.0, 0.0, 1.0], atol=1e-4)


@given(st.floats(-1, 1))
def test_a_gap_is_found_at_equal_kl_and_reverses_its_sign(shift):
    weights = resample(PROMPTS, draws=4)
    first = curve("best of n", 0.4, 0.1, kl=np.linspace(0, 2, 200) ** 2)
    second = curve("best of n", 0.4, 0.1)
    raised = dataclasses.replace(second, gold=second.gold + shift * (KL > 0)[:, None])
    np.testing.assert_allclose(law_bootstrap.gap(first, raised, weights), shift, atol=1e-3)
    lowered = dataclasses.replace(second, gold=second.gold - shift * (KL > 0)[:, None])
    np.testing.assert_allclose(law_bootstrap.gap(first, lowered, weights), -shift, atol=1e-3)


def test_a_gap_ignores_points_that_the_first_curve_does_not_reach():
    weights = resample(PROMPTS, draws=4)
    first, second = (curve("rl", 0.4, 0.1, kl=kl) for kl in (KL[:5], KL))
    gold = second.gold.copy()
    gold[5:] += 7.0
    np.testing.assert_allclose(law_bootstrap.gap(first, dataclasses.replace(second, gold=gold), weights), 0, atol=1e-9)
    beyond = curve("rl", 0.4, 0.1, kl=np.array([0.0, 9.0]))
    with pytest.raises(DataError, match="^second: expected KLs up to 1.6, found 9 and more$"):
        law_bootstrap.gap(first, beyond, weights)


@pytest.mark.parametrize(("draws", "expected"), [([1.0, 2.0, 3.0], 0.5), ([1.0, -1.0, 2.0], 1.0), ([0.0, 0.0], 1.0)])
def test_p_values(draws, expected):
    assert law_bootstrap.p_value(np.array([1.0, *draws])) == pytest.approx(expected)
