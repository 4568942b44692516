"""Updates of a training state, and its moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.training import state as train_state

SGD = optax.sgd(0.5)


def params():
    return {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


def test_an_update_changes_weights_and_step_and_leaves_the_average_alone():
    state = train_state.create_averaged(params(), SGD)
    new = train_state.apply_gradients(state, {"w": jnp.array([2.0, 0.0]), "b": jnp.array(-1.0)}, SGD, jnp.array(True))
    np.testing.assert_allclose(new.params["w"], [0.0, -2.0])
    np.testing.assert_allclose(new.params["b"], 3.5)
    assert int(new.step) == 1 and int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, new.ema, params())


@given(st.floats(0.0, 1.0), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_average_weighs_the_past_geometrically(decay, path):
    state = train_state.create_averaged({"w": jnp.float32(path[0])}, SGD)
    for value in path[1:]:
        state = train_state.update_average(state.replace(params={"w": jnp.float32(value)}), decay)
    last = len(path) - 1
    expected = decay**last * path[0] + sum(
        (1 - decay) * decay ** (last - i) * value for i, value in enumerate(path) if i
    )
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-4, atol=1e-4)


def test_the_average_starts_as_a_copy_so_that_both_can_be_donated():
    state = train_state.create_averaged(params(), SGD)
    step = jax.jit(lambda state: train_state.update_average(state, 0.5), donate_argnums=0)
    jax.tree.map(np.testing.assert_array_equal, step(state).ema, {"w": [1.0, -2.0], "b": 3.0})


@pytest.mark.parametrize("finite", [True, False])
def test_weights_and_moments_stay_in_half_precision(finite):
    adam = optax.adamw(0.1)
    state = train_state.create({"w": jnp.ones(3, jnp.bfloat16)}, adam)
    new = train_state.apply_gradients(state, {"w": jnp.ones(3, jnp.float32)}, adam, jnp.array(finite))
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)
    assert bool((new.params["w"] < 1).all()) == finite and int(new.skipped) == (not finite)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes for a CPU")
def test_updates_in_a_loop_copy_neither_weights_nor_moments():
    adam, shape = optax.adamw(1e-3), (512, 512)

    def update(state, factor):
        return train_state.apply_gradients(state, {"w": state.params["w"] * factor}, adam, factor > 0), None

    state = train_state.create({"w": jnp.ones(shape)}, adam)
    program = jax.jit(lambda state, factors: jax.lax.scan(update, state, factors)[0], donate_argnums=0)
    memory = program.lower(state, jnp.arange(8.0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * state.params["w"].nbytes  # the gradient


def test_a_state_has_only_arrays():
    for state in (train_state.create(params(), SGD), train_state.create_averaged(params(), SGD)):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert train_state.create(params(), SGD).ema is None
