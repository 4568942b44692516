"""Compares learning rates with the paper's description, and Adam with a loop; weight decay is by name."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.training import optimizer
from tests import fakes

CONFIG = ml_collections.ConfigDict(
    {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-3, "clip_norm": 1.0, "first_moment_dtype": ""}
)


def values(schedule, *updates):
    return [float(schedule(update)) for update in updates]


def test_cosine_goes_from_the_peak_to_a_tenth():
    schedule = optimizer.cosine_schedule(4.0, 10)
    # 0.1 + 0.9 (1 + cos(pi t / 10)) / 2, times the peak
    np.testing.assert_allclose(values(schedule, 0, 5, 10, 1000), [4.0, 2.2, 0.4, 0.4], rtol=1e-5)
    np.testing.assert_allclose(values(schedule, 3), [4 * (0.1 + 0.45 * (1 + np.cos(0.3 * np.pi)))], rtol=1e-5)


def test_cosine_warms_up_without_wasting_the_first_update():
    schedule = optimizer.cosine_schedule(1.0, 10, warmup_steps=4)
    np.testing.assert_allclose(values(schedule, 0, 1, 2, 3), [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(values(schedule, 4, 7, 10, 99), [1.0, 0.55, 0.1, 0.1], rtol=1e-5)


def test_one_step_of_warmup_is_the_peak():
    np.testing.assert_allclose(
        values(optimizer.cosine_schedule(3.0, 4, warmup_steps=1), 0, 1, 4), [3.0, 3.0, 0.3], 1e-6
    )


def test_ppo_warms_up_from_a_tenth_and_stays_constant():
    schedule = optimizer.constant_schedule(2.0, 10)
    np.testing.assert_allclose(values(schedule, 0, 5, 10, 11, 999), [0.2, 1.1, 2.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(values(optimizer.constant_schedule(2.0, 0), 0, 7), [2.0, 2.0])


@given(st.floats(1e-6, 1.0), st.integers(2, 300), st.integers(0, 50), st.floats(0.0, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_schedule_never_leaves_its_bounds(peak, steps, warmup_steps, final_fraction):
    schedule = optimizer.cosine_schedule(peak, steps, min(warmup_steps, steps - 1), final_fraction)
    rates = np.array([float(schedule(i)) for i in np.linspace(0, steps + 5, 12).astype(int)])
    assert np.all((0 <= rates) & (rates <= peak * (1 + 1e-5)))
    assert rates[0] > 0
    np.testing.assert_allclose(rates[-1], peak * final_fraction, atol=peak * 1e-6)


def test_the_first_moment_can_be_held_in_half_precision():
    """An update differs by the rounding of the moment, 2**-8 of it; the second moment is not rounded."""
    params = {"kernel": jnp.linspace(0.5, 1.5, 16)}
    states = []
    for dtype in ("", "bfloat16"):
        config = ml_collections.ConfigDict({**CONFIG, "first_moment_dtype": dtype})
        adam = optimizer.adam(config, lambda _: 0.1, 0.0)
        updates, state = adam.update(params, adam.init(params), params)
        states.append((updates["kernel"], state[1][0].mu["kernel"], state[1][0].nu["kernel"]))
    (exact, mean, square), (rounded, low, same) = states
    assert (mean.dtype, low.dtype, same.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(rounded, exact, rtol=2**-8)
    np.testing.assert_array_equal(same, square)


def test_only_matrices_decay():
    for _, params in (fakes.language_model(), fakes.scalar_model()):
        decayed = {
            jax.tree_util.keystr(path, simple=True, separator="/"): flag
            for path, flag in jax.tree_util.tree_leaves_with_path(optimizer.decayed(params))
        }
        assert len(decayed) == len(jax.tree.leaves(params))
        for name, flag in decayed.items():
            assert flag == name.endswith(("kernel", "embedding"))
            assert flag != name.endswith(("bias", "scale"))
        assert {"trunk/token_embedding", "trunk/blocks/feed_forward/in/kernel"} <= {n for n in decayed if decayed[n]}


def test_without_a_gradient_matrices_shrink_and_the_rest_stays():
    _, params = fakes.language_model()
    adam = optimizer.adam(CONFIG, optax.constant_schedule(0.1), weight_decay=0.5)
    update = jax.jit(lambda params: adam.update(jax.tree.map(jnp.zeros_like, params), adam.init(params), params))
    updates, _ = update(params)
    for shrinks, update, param in zip(*map(jax.tree.leaves, (optimizer.decayed(params), updates, params)), strict=True):
        np.testing.assert_allclose(update, -0.05 * param if shrinks else 0 * param, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_equals_a_loop(weight_decay):
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)}
    # Norms above and below the clip.
    gradients = [{name: scale * rng.normal(size=x.shape) for name, x in params.items()} for scale in (9, 0.05, 1, 3)]
    rates = optimizer.cosine_schedule(0.1, 4)
    adam = optimizer.adam(CONFIG, rates, weight_decay)
    found = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = adam.init(found)
    first = {name: 0.0 for name in params}
    second = {name: 0.0 for name in params}
    for step, gradient in enumerate(gradients):
        updates, state = adam.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient), state, found)
        found = optax.apply_updates(found, updates)
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        for name in params:
            g = gradient[name] / max(1.0, norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            direction = (first[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-3
            )
            decay = weight_decay * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - float(rates(step)) * (direction + decay)
    for name in params:
        np.testing.assert_allclose(found[name], params[name], rtol=1e-4, atol=1e-6)
