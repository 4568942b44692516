"""One step, compiled in both modes, against the step itself on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import losses
from instructjax.errors import ConfigError
from instructjax.training import parallel
from instructjax.training import state as train_state
from instructjax.training.step import Maximum, train_step

ADAM = optax.adam(0.1, eps=1e-3)
KEY = jax.random.key(0)


def make_step(axis_name):
    """A step with a frozen weight: it makes batches of different weight matter."""

    def step(state, batch, key, frozen):
        def loss(params, batch, key):
            rows, nothing = batch
            assert nothing is None
            error = rows["x"] @ (params["w"] * frozen["scale"]) - rows["y"]
            return losses.masked_sum(jnp.square(error), rows["mask"]), {"largest": Maximum(jnp.abs(error).max())}

        return train_step(loss, ADAM, axis_name=axis_name)(state, batch, key)

    return step


def initial():
    return train_state.create({"w": jnp.array([0.5, -1.0, 0.3])}, ADAM)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows = {
            "x": rng.normal(size=(8, 3)).astype(np.float32),
            "y": rng.normal(size=8).astype(np.float32),
            "mask": (np.arange(8) < rng.integers(1, 8)).astype(np.float32),
        }
        yield rows, None


def train(step):
    state, metrics = initial(), []
    for batch in batches():
        state, found = step(state, batch, KEY, {"scale": jnp.array(2.0)})
        metrics.append(jax.device_get(found))
    return jax.device_get(state), metrics


@pytest.mark.parametrize("mode", parallel.MODES)
def test_four_devices_equal_one(mode):
    assert jax.device_count() == 4
    expected, expected_metrics = train(make_step(None))
    step = parallel.compile_step(make_step(parallel.axis_name(mode)), mode)
    found, metrics = train(step)
    # One state and one set of metrics, of the shapes of one device.
    assert jax.tree.map(np.shape, (found, metrics)) == jax.tree.map(np.shape, (expected, expected_metrics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (found, metrics),
        (expected, expected_metrics),
    )


def test_only_pmap_names_an_axis():
    assert parallel.axis_name("jit") is None
    assert parallel.axis_name("pmap") == parallel.AXIS


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="^parallel.mode: expected one of jit, pmap, found 'xmap'$"):
        parallel.compile_step(make_step(None), "xmap")


@pytest.mark.parametrize(
    ("size", "parts", "found"),
    [
        (6, 1, "sft.batch_size: expected a multiple of 4 (4 devices x 1 parts), such as 4 or 8, found 6"),
        (3, 2, "sft.batch_size: expected a multiple of 8 (4 devices x 2 parts), such as 8, found 3"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(size, parts, found):
    with pytest.raises(ConfigError) as error:
        parallel.check_batch_size(size, "sft.batch_size", parts)
    assert str(error.value) == found


def test_a_batch_that_divides_is_accepted():
    parallel.check_batch_size(24, "sft.batch_size", 3)
