"""Best of n from a pool of answers, and the laws of over-optimization."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from instructjax.errors import DataError
from instructjax.evaluation import overoptimization
from instructjax.evaluation.overoptimization import best_of_n, best_of_n_kl, fit, pair_accuracy

# Few values, so that there are ties.
REWARDS = st.integers(1, 7).flatmap(
    lambda size: st.tuples(
        arrays.arrays(np.float64, (2, size), elements=st.integers(-2, 2).map(float)),
        arrays.arrays(np.float64, (2, size), elements=st.floats(-3, 3)),
        st.integers(1, size),
    )
)


def over_all_subsets(proxy, gold, n):
    """The mean over all subsets; of several best answers, their mean."""
    subsets = [list(chosen) for chosen in itertools.combinations(range(len(proxy)), n)]
    return np.mean([gold[chosen][proxy[chosen] == proxy[chosen].max()].mean() for chosen in subsets])


@given(REWARDS)
def test_best_of_n_is_the_mean_over_all_subsets(drawn):
    proxy, gold, n = drawn
    expected = [over_all_subsets(*rewards, n) for rewards in zip(proxy, gold, strict=True)]
    np.testing.assert_allclose(best_of_n(proxy, gold, n), expected, atol=1e-12)


@given(REWARDS, st.randoms(use_true_random=False))
def test_best_of_n_does_not_depend_on_the_order_of_the_answers(drawn, random):
    proxy, gold, n = drawn
    order = random.sample(range(proxy.shape[1]), proxy.shape[1])
    np.testing.assert_allclose(best_of_n(proxy[:, order], gold[:, order], n), best_of_n(proxy, gold, n), atol=1e-12)


@given(REWARDS)
def test_best_of_1_is_the_mean_and_the_proxy_never_falls_with_n(drawn):
    proxy, gold, _ = drawn
    np.testing.assert_allclose(best_of_n(proxy, gold, 1), gold.mean(axis=1), atol=1e-12)
    curve = np.stack([best_of_n(proxy, proxy, n) for n in range(1, proxy.shape[1] + 1)])
    assert (np.diff(curve, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(curve[-1], proxy.max(axis=1), atol=1e-12)


def test_best_of_n_is_unbiased():
    """Small pools give, on average, the value of a large population."""
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(20_000, 8))
    gold = 0.6 * proxy + 0.8 * rng.normal(size=proxy.shape)
    found = best_of_n(proxy, gold, 4)
    largest_of_4 = 1.02938  # the expected maximum of 4 standard normal values
    assert found.mean() == pytest.approx(0.6 * largest_of_4, abs=4 * found.std() / math.sqrt(len(found)))


@pytest.mark.parametrize("n", [0, 4])
def test_n_is_at_most_the_number_of_answers(n):
    with pytest.raises(DataError, match=f"^n: expected 1 to 3, the number of answers per prompt, found {n}$"):
        best_of_n(np.zeros((2, 3)), np.zeros((2, 3)), n)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_kl_of_best_of_n_is_that_of_its_density(n):
    """The best of n has the density n u^(n - 1) of its quantile u, which is uniform for one sample."""
    u = (np.arange(200_000) + 0.5) / 200_000
    log_density = math.log(n) + (n - 1) * np.log(u)
    assert best_of_n_kl(n) == pytest.approx(np.mean(np.exp(log_density) * log_density), abs=1e-3)


@given(st.sampled_from(["best of n", "rl"]), st.floats(0.1, 3), st.floats(0.01, 1))
def test_a_law_is_found_from_its_own_points(law, alpha, beta):
    kl = np.linspace(0, 9, 12)
    gain = overoptimization.Fit(law, alpha, beta, 1.0).predict(kl)
    found = fit(law, kl, gain)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-8)
    assert found.r_squared == pytest.approx(1.0)
    assert gain[0] == 0.0


@pytest.mark.parametrize("law", ["best of n", "rl"])
def test_the_peak_is_where_the_gain_is_largest(law):
    found = overoptimization.Fit(law, 1.0, 0.3, 1.0)
    kl = np.linspace(0.01, 200, 400_000)
    assert found.peak == pytest.approx(kl[found.predict(kl).argmax()], abs=1e-3)
    assert overoptimization.Fit(law, 1.0, 0.0, 1.0).peak == math.inf
    assert overoptimization.Fit("rl", 1.0, 1e-4, 1.0).peak == math.inf
    assert overoptimization.Fit("best of n", -1.0, 0.3, 1.0).peak == 0.0


def test_two_points_are_too_few_for_a_fit():
    with pytest.raises(DataError, match="^kl: expected at least 3 different values above 0, found "):
        fit("rl", np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0, 1.5]))


@given(REWARDS)
def test_pair_accuracy_is_the_share_of_pairs_in_the_order_of_the_gold_reward(drawn):
    proxy, gold, _ = drawn
    for found, guessed, known in zip(pair_accuracy(proxy, gold), proxy, gold, strict=True):
        right = [
            (guessed[i] > guessed[j]) + 0.5 * (guessed[i] == guessed[j])
            for i, j in itertools.permutations(range(len(known)), 2)
            if known[i] > known[j]
        ]
        assert found == pytest.approx(np.mean(right) if right else math.nan, nan_ok=True)
