import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from instructjax.errors import DataError
from instructjax.evaluation.intervals import Estimate, clustered_mean

values = st.lists(st.floats(-10, 10), min_size=2, max_size=30)


@given(values)
def test_one_value_per_cluster_gives_the_ordinary_standard_error(x):
    estimate = clustered_mean(x, range(len(x)))
    half = stats.t.ppf(0.975, len(x) - 1) * np.std(x, ddof=1) / np.sqrt(len(x))
    np.testing.assert_allclose(
        [estimate.mean, estimate.low, estimate.high], [np.mean(x), np.mean(x) - half, np.mean(x) + half], atol=1e-9
    )
    assert estimate.n == len(x)


@given(values, st.integers(2, 5))
def test_repeating_every_value_in_its_cluster_changes_only_n(x, times):
    clusters = [str(i % 3) for i in range(len(x))]
    once = clustered_mean(x, clusters)
    repeated = clustered_mean(x * times, clusters * times)
    np.testing.assert_allclose(
        [repeated.mean, repeated.low, repeated.high], [once.mean, once.low, once.high], atol=1e-9
    )
    assert repeated.n == times * once.n


@given(values, st.randoms(use_true_random=False))
def test_the_order_and_names_of_clusters_do_not_matter(x, random):
    clusters = [i % 4 for i in range(len(x))]
    pairs = list(zip(x, clusters, strict=True))
    random.shuffle(pairs)
    shuffled = clustered_mean([value for value, _ in pairs], [f"prompt {cluster}" for _, cluster in pairs])
    original = clustered_mean(x, clusters)
    np.testing.assert_allclose([shuffled.low, shuffled.high], [original.low, original.high], atol=1e-9)


def test_the_interval_covers_the_mean_of_clustered_data_and_an_ordinary_one_does_not():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    clustered, ordinary, runs = 0, 0, 1000
    for _ in range(runs):
        x = rng.normal(size=40)[clusters] + rng.normal(size=len(clusters))
        one, other = clustered_mean(x, clusters), clustered_mean(x, np.arange(len(x)))
        clustered += one.low < 0 < one.high
        ordinary += other.low < 0 < other.high
    assert 0.92 < clustered / runs < 0.97
    assert ordinary / runs < 0.80


@pytest.mark.parametrize(
    ("x", "clusters", "message"),
    [
        ([1.0, 2.0], ["a", "a"], "expected at least 2 clusters"),
        ([], [], "expected at least 2 clusters"),
        ([1.0, 2.0], ["a"], "expected one cluster per value"),
        ([1.0, float("nan")], ["a", "b"], "expected finite values, found nan"),
    ],
)
def test_errors_say_what_was_expected(x, clusters, message):
    with pytest.raises(DataError, match=message):
        clustered_mean(x, clusters)


def test_to_dict_has_the_keys_of_results_json():
    assert Estimate(0.5, 0.4, 0.6, 10).to_dict() == {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 10}
