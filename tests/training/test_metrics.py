"""Metrics merge to the same value in any order and any split."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.training import metrics
from instructjax.training.metrics import Maximum, Mean

NUMBERS = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 4)), min_size=1, max_size=12)


def measured(pairs):
    return [{"mean": Mean(np.float32(x * w), np.float32(w)), "largest": Maximum(np.float32(x))} for x, w in pairs]


@given(NUMBERS)
@settings(deadline=None)
def test_the_value_is_that_of_all_measurements_together(pairs):
    found = metrics.compute(measured(pairs))
    assert found["largest"] == max(x for x, _ in pairs)
    if weight := sum(w for _, w in pairs):
        np.testing.assert_allclose(found["mean"], sum(x * w for x, w in pairs) / weight)
    else:
        assert "mean" not in found


@given(NUMBERS, st.integers(0, 12))
@settings(deadline=None)
def test_a_split_anywhere_gives_the_same_value(pairs, cut):
    window = measured(pairs)
    parts = [part for part in (window[:cut], window[cut:]) if part]
    merged = []
    for part in parts:
        total = part[0]
        for following in part[1:]:
            total = metrics.merge(total, following)
        merged.append(total)
    found, expected = metrics.compute(merged), metrics.compute(window)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@given(NUMBERS)
@settings(deadline=None)
def test_merging_nothing_changes_nothing(pairs):
    for one in measured(pairs):
        merged = metrics.merge(metrics.empty(one), one)
        assert metrics.compute([merged]) == metrics.compute([one])
    assert metrics.compute([metrics.empty(measured(pairs)[0])]) == {}


def test_metrics_stacked_by_a_scan_collapse():
    def step(carry, x):
        return carry, {"mean": Mean(x, jnp.ones(())), "largest": Maximum(x)}

    _, stacked = jax.lax.scan(step, 0, jnp.array([1.0, 4.0, 2.5]))
    assert metrics.compute([jax.device_get(metrics.collapse(stacked))]) == {"mean": 2.5, "largest": 4.0}
