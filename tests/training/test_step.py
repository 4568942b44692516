"""The result of a step does not depend on the split of its batch into microbatches and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import losses
from instructjax.training import state as train_state
from instructjax.training.metrics import Maximum, Mean, reduce
from instructjax.training.rows import gather_rows, own_rows
from instructjax.training.step import summed_gradient, train_step

B, T, D = 8, 5, 3
CUTS = [(1, 1), (2, 1), (8, 1), (1, 2), (1, 4), (2, 4)]  # (microbatches, devices)
KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([0.5, -1.0, 0.3]), "b": jnp.array(0.2)}


def loss(params, batch, key):
    del key
    error = jnp.tanh(batch["x"] @ params["w"] + params["b"]) - batch["y"]
    metrics = {
        "absolute": Mean(*losses.masked_sum(jnp.abs(error), batch["mask"])),
        "largest": Maximum(jnp.max(jnp.where(batch["mask"] > 0, error, -jnp.inf))),
        # Below zero: a maximum must not start from 0.
        "largest_penalty": Maximum(-1 - jnp.min(jnp.square(error))),
    }
    return losses.masked_sum(jnp.square(error), batch["mask"]), metrics


def random_batch(seed):
    """Returns ragged rows: each has a different number of tokens, some have none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, T + 1, size=B)
    return {
        "x": rng.normal(size=(B, T, D)).astype(np.float32),
        "y": rng.normal(size=(B, T)).astype(np.float32),
        "mask": (np.arange(T) < lengths[:, None]).astype(np.float32),
    }


def cut_rows(batch, devices):
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


@jax.jit
def gradient_of_mean(batch):
    """Differentiates the mean over all tokens of the whole batch, directly."""
    return jax.grad(lambda params: losses.mean(*loss(params, batch, None)[0]))(PARAMS)


@functools.cache
def compiled(microbatches, devices):
    """Compiles `summed_gradient` over a named axis of vmap, which stands for devices; one result per device."""
    axis = None if devices == 1 else "data"
    program = functools.partial(summed_gradient, loss, microbatches=microbatches, axis_name=axis)
    if axis is None:
        return jax.jit(lambda batch: jax.tree.map(lambda x: x[None], program(PARAMS, batch, KEY)))
    mapped = jax.vmap(program, in_axes=(None, 0, None), axis_name=axis)
    return jax.jit(lambda batch: mapped(PARAMS, cut_rows(batch, devices), KEY))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_gradient_is_that_of_the_global_mean_however_the_batch_is_split(seed):
    batch = random_batch(seed)
    expected = gradient_of_mean(batch)
    (total, weight), metrics = loss(PARAMS, batch, KEY)
    for cut in CUTS:
        (gradients, weights), found = compiled(*cut)(batch)
        for device in range(cut[1]):
            gradient = jax.tree.map(lambda x, device=device: x[device], losses.mean(gradients, weights[0]))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)
            np.testing.assert_allclose(found["loss"].total[device], total, rtol=1e-5, atol=1e-6)
            assert float(found["loss"].weight[device]) == float(weight) == batch["mask"].sum()
            np.testing.assert_allclose(found["absolute"].total[device], metrics["absolute"].total, rtol=1e-5, atol=1e-6)
            for name in ("largest", "largest_penalty"):
                np.testing.assert_allclose(found[name].value[device], metrics[name].value, rtol=1e-6)


def test_the_mean_of_the_means_of_devices_would_be_wrong():
    batch = random_batch(3)
    parts = [jax.tree.map(lambda x, i=i: x[i], cut_rows(batch, 4)) for i in range(4)]
    naive = jax.tree.map(lambda *x: sum(x) / 4, *map(gradient_of_mean, parts))
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, naive, gradient_of_mean(batch)))) > 0.05


@pytest.mark.parametrize("microbatches", [1, 2])
def test_pmap_over_four_devices_equals_one_device(microbatches):
    batch = random_batch(5)
    program = functools.partial(summed_gradient, loss, PARAMS, microbatches=microbatches, axis_name="data")
    (gradients, weights), metrics = jax.pmap(program, axis_name="data", in_axes=(0, None))(cut_rows(batch, 4), KEY)
    expected, found_metrics = compiled(1, 1)(batch)
    for device in range(4):
        found = jax.tree.map(lambda x, device=device: x[device : device + 1], ((gradients, weights), metrics))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, (expected, found_metrics)
        )


@pytest.mark.parametrize("cut", CUTS)
def test_a_batch_without_a_token_has_gradient_zero(cut):
    batch = random_batch(0)
    batch["mask"][:] = 0
    (gradient, weight), _ = compiled(*cut)(batch)
    update = losses.mean(gradient, weight[0])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(update))


def noise(params, batch, key):
    """Acts as a loss that only draws a number, to show the randomness of each part of a batch."""
    draw = jax.random.normal(key)
    return (params["w"].sum() * 0 + draw, jnp.ones(())), {"largest_draw": Maximum(draw)}


def test_each_microbatch_and_each_device_draws_its_own_noise():
    batch = {"x": jnp.zeros((8, 1))}
    draws = set()
    for cut in ((4, 1), (1, 4), (4, 2)):
        program = functools.partial(summed_gradient, noise, microbatches=cut[0], axis_name="data")
        mapped = jax.jit(jax.vmap(program, in_axes=(None, 0, None), axis_name="data"))
        metrics = mapped(PARAMS, cut_rows(batch, cut[1]), KEY)[1]
        parts = cut[0] * cut[1]
        total, largest = float(metrics["loss"].total[0]), float(metrics["largest_draw"].value[0])
        assert float(metrics["loss"].weight[0]) == parts
        assert abs(total - parts * largest) > 0.1  # equal draws would add up to this
        draws.add(total)
    assert len(draws) == 3


def test_each_step_draws_new_numbers_from_the_same_key_and_a_resumed_step_the_same_ones():
    step = jax.jit(train_step(noise, optax.sgd(0.1)))
    state = train_state.create(PARAMS, optax.sgd(0.1))
    batch = {"x": jnp.zeros((2, 1))}
    second, first = step(state, batch, KEY)
    third, next_one = step(second, batch, KEY)
    again, repeated = step(second, batch, KEY)
    assert float(first["loss"].total) != float(next_one["loss"].total) == float(repeated["loss"].total)
    assert int(third.step) == int(again.step) == 2


def test_a_step_is_one_update_by_the_gradient_of_the_mean():
    batch = random_batch(1)
    state, metrics = train_step(loss, optax.sgd(0.5), microbatches=4)(
        train_state.create(PARAMS, optax.sgd(0.5)), batch, KEY
    )
    gradient = gradient_of_mean(batch)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, PARAMS, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, expected)
    np.testing.assert_allclose(metrics["gradient_norm"].total, optax.tree.norm(gradient), rtol=1e-5)
    assert float(metrics["gradient_norm"].weight) == 1


def test_rows_are_gathered_in_order_and_split_again():
    rows = jnp.arange(8.0)

    def program(part):
        everything = gather_rows({"x": part}, "data")["x"]
        mine = everything[own_rows(jnp.array([7, 6, 5, 4, 3, 2, 1, 0]), "data")]
        total = reduce({"sum": Mean(mine.sum(), jnp.ones(())), "largest": Maximum(mine.max())}, "data")
        return everything, mine, total

    everything, mine, total = jax.pmap(program, axis_name="data")(rows.reshape(4, 2))
    np.testing.assert_array_equal(everything, jnp.tile(rows, (4, 1)))
    np.testing.assert_array_equal(mine.reshape(-1), rows[::-1])
    np.testing.assert_array_equal(total["sum"].total, [28.0] * 4)
    np.testing.assert_array_equal(total["largest"].value, [7.0] * 4)


def test_without_an_axis_arrays_are_already_global():
    metrics = {"sum": Mean(jnp.ones(()), jnp.ones(())), "largest": Maximum(jnp.ones(()))}
    assert reduce(metrics, None) == metrics
    rows = jnp.ones(3)
    assert gather_rows(rows, None) is own_rows(rows, None) is rows
