"""Compares a step that is compiled in both modes with the same step on one device."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax import losses
from instructjax.errors import ConfigError
from instructjax.models import partitioning
from instructjax.training import parallel
from instructjax.training import state as train_state
from instructjax.training.step import Maximum, train_step
from tests import fakes

ADAM = optax.adam(0.1, eps=1e-3)
KEY = jax.random.key(0)


def config(**changes):
    return ml_collections.ConfigDict(
        {"mode": "jit", "data": -1, "fsdp": 1, "tensor": 1, "shard_optimizer_state": False} | changes
    )


def make_step(axis_name):
    """Returns a step with a frozen weight, which makes differences in the batches' weights matter."""

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
def test_eight_devices_equal_one(mode):
    assert jax.device_count() == 8
    expected, expected_metrics = train(make_step(None))
    with parallel.on_mesh(config(mode=mode)):
        found, metrics = train(parallel.compile_step(make_step(parallel.axis_name(mode)), config(mode=mode)))
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


def test_an_unknown_mode_is_rejected():
    with pytest.raises(ConfigError, match="^parallel.mode: expected one of jit, pmap, found 'xmap'$"):
        parallel.compile_step(make_step(None), config(mode="xmap"))


@pytest.mark.parametrize(
    ("size", "parts", "axes", "found"),
    [
        (12, 1, {}, "sft.batch_size: expected a multiple of 8 (8 devices x 1 parts), such as 8 or 16, found 12"),
        (3, 2, {}, "sft.batch_size: expected a multiple of 16 (8 devices x 2 parts), such as 16, found 3"),
        (
            6,
            1,
            {"tensor": 2},
            "sft.batch_size: expected a multiple of 4 (4 devices x 1 parts), such as 4 or 8, found 6",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_rejected_with_sizes_that_do(size, parts, axes, found):
    with pytest.raises(ConfigError) as error:
        parallel.check_batch_size(size, "sft.batch_size", config(**axes), parts)
    assert str(error.value) == found


def test_a_batch_that_divides_is_accepted():
    parallel.check_batch_size(24, "sft.batch_size", config(), 3)


@pytest.mark.parametrize(("mode", "axes"), [("jit", {}), ("jit", {"fsdp": 8}), ("pmap", {}), ("one device", {})])
def test_only_the_state_is_donated(mode, axes):
    given = config(**axes) if mode == "one device" else config(mode=mode, **axes)
    frozen = {"scale": jnp.array(2.0)}
    with contextlib.nullcontext() if mode == "one device" else parallel.on_mesh(given):
        step = parallel.compile_step(make_step(parallel.axis_name(given.mode)), given)
        state = parallel.build(initial)
        batch = next(batches())
        first, _ = step(state, batch, KEY, frozen)
        second, _ = step(first, batch, KEY, frozen)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((second, frozen, KEY)))


def test_pmap_sends_constants_to_the_devices_once():
    given = config(mode="pmap")
    frozen = {"scale": jnp.array(2.0)}
    key = jax.device_put(KEY, NamedSharding(Mesh(jax.devices(), (parallel.AXIS,)), P()))
    with parallel.on_mesh(given):
        step = parallel.compile_step(make_step(parallel.axis_name(given.mode)), given)
        state, _ = step(initial(), next(batches()), key, frozen)
        with jax.transfer_guard_device_to_device("disallow_explicit"):
            state, _ = step(state, next(batches()), key, frozen)
            with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed device-to-device transfer"):
                step(state, next(batches()), key, {"scale": jnp.array(3.0)})


def weights(width=16, hidden=32, vocabulary=48):
    block = {"feed_forward": {"in": {"kernel": jnp.ones((2, width, hidden)), "bias": jnp.ones((2, hidden))}}}
    params = {"trunk": {"token_embedding": jnp.ones((vocabulary, width)), "blocks": block}}
    return train_state.create(params, ADAM)


def cut(array):
    """Returns the number of parts along each axis."""
    return tuple(a // b for a, b in zip(array.shape, array.sharding.shard_shape(array.shape), strict=True))


@pytest.mark.parametrize(
    ("axes", "embedding", "kernel", "moment"),
    [
        ({}, (1, 1), (1, 1, 1), (1, 1, 1)),
        ({"shard_optimizer_state": True}, (1, 1), (1, 1, 1), (1, 8, 1)),
        ({"fsdp": 8}, (1, 8), (1, 8, 1), (1, 8, 1)),
        ({"fsdp": 2, "tensor": 4}, (4, 2), (1, 2, 4), (1, 2, 4)),
        ({"fsdp": 2, "tensor": 2, "shard_optimizer_state": True}, (2, 2), (1, 2, 2), (1, 4, 2)),
    ],
)
def test_weights_and_moments_are_sharded_by_the_rules(axes, embedding, kernel, moment):
    with parallel.on_mesh(config(**axes)):
        state = parallel.build(weights, shard_optimizer_state=config(**axes).shard_optimizer_state)
        slots = state.opt_state[0].mu["trunk"]["blocks"]["feed_forward"]["in"]["kernel"]
        assert cut(state.params["trunk"]["token_embedding"]) == embedding
        assert cut(state.params["trunk"]["blocks"]["feed_forward"]["in"]["kernel"]) == kernel
        assert cut(slots) == moment
        shapes = parallel.abstract(state.params)
        assert jax.tree.map(lambda x: x.sharding, shapes) == jax.tree.map(lambda x: x.sharding, state.params)


def test_an_axis_that_does_not_divide_is_not_sharded():
    with parallel.on_mesh(config(fsdp=2, tensor=4)):
        state = parallel.build(functools.partial(weights, vocabulary=50))
        assert cut(state.params["trunk"]["token_embedding"]) == (1, 2)


@pytest.mark.parametrize(
    ("axes", "rows", "devices", "even"),
    [
        ({}, 8, 8, 8),
        ({}, 13, 1, 16),
        ({"data": 2, "fsdp": 4}, 6, 2, 8),
        ({"tensor": 4}, 5, 1, 6),
        ({"tensor": 8}, 5, 1, 5),
    ],
)
def test_rows_are_sharded_over_the_devices_they_divide_over(axes, rows, devices, even):
    with parallel.on_mesh(config(**axes)):
        x = jax.jit(partitioning.constrain_rows)(jnp.zeros((rows, 2)))
        assert rows // x.sharding.shard_shape(x.shape)[0] == partitioning.devices_of_rows(rows) == devices
        assert partitioning.even_rows(rows) == even
    assert (partitioning.devices_of_rows(rows), partitioning.even_rows(rows)) == (1, rows)  # without a mesh


@pytest.mark.parametrize(
    ("axes", "found"),
    [
        ({"fsdp": 3}, "parallel: expected data x fsdp x tensor = 8 devices, found 2 x 3 x 1"),
        ({"data": 3}, "parallel: expected data x fsdp x tensor = 8 devices, found 3 x 1 x 1"),
        ({"tensor": 0}, "parallel.tensor: expected at least 1 device, found 0"),
        ({"fsdp": 0}, "parallel.fsdp: expected at least 1 device, or -1 for all that are left, found 0"),
        ({"fsdp": -1, "tensor": 3}, "parallel: expected data x fsdp x tensor = 8 devices, found 1 x 2 x 3"),
        ({"data": -2}, "parallel.data: expected at least 1 device, or -1 for all that are left, found -2"),
        (
            {"mode": "pmap", "fsdp": 2},
            "parallel.mode: expected jit for a mesh of data=-1, fsdp=2, tensor=1, found pmap",
        ),
    ],
)
def test_a_mesh_of_another_number_of_devices_is_rejected(axes, found):
    with pytest.raises(ConfigError) as error, parallel.on_mesh(config(**axes)):
        pass
    assert str(error.value).startswith(found)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": -1}, (1, 8, 1)),
        ({"fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1)),
        ({"mode": "pmap", "fsdp": -1}, (8, 1, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_the_devices_that_are_left_go_to_fsdp_or_else_to_data(axes, shape):
    assert parallel.mesh_shape(config(**axes), 8) == shape


def test_a_model_that_does_not_divide_over_the_mesh_is_rejected():
    parallel.check_model(fakes.CONFIG, "model", config(fsdp=4, tensor=2))
    expected = "^parallel.tensor: expected a divisor of model.num_heads \\(2\\), such as 1, 2, found 8$"
    with pytest.raises(ConfigError, match=expected):
        parallel.check_model(fakes.CONFIG, "model", config(tensor=8))


def test_pmap_is_for_one_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = "^parallel.mode: expected jit in a run of several processes, found pmap in 2$"
    with pytest.raises(ConfigError, match=expected), parallel.on_mesh(config(mode="pmap")):
        pass
