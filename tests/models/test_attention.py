"""Compares masks with loops, and attention with NumPy in float64; checks when the fused kernel is chosen."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.models import attention as attention_module
from instructjax.models.attention import Visible, attention, attention_mask, band_mask, branch_mask, fused_kernel


@settings(deadline=None, max_examples=25)
@given(*[st.lists(st.integers(0, 3), min_size=6, max_size=6)] * 2, st.integers(1, 4))
def test_masks_are_their_definitions(segments, branches, window):
    length = len(segments)
    on_the_way = np.asarray(branch_mask(jnp.array([branches]), jnp.array([branches]))[0])
    index, row = jnp.arange(length)[None], jnp.array([segments])
    seen = np.asarray(attention_mask(index, index, row, row)[0])
    near = np.asarray(band_mask(index, index, window)[0])
    for i in range(length):
        for j in range(length):
            assert seen[i, j] == (j <= i and segments[i] == segments[j] and segments[j] > 0)
            assert near[i, j] == (i - j < window)
            assert on_the_way[i, j] == (branches[j] in (0, branches[i]))


def test_attention_is_the_weighted_mean_of_visible_values():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 3, length, 8)) for length in (4, 6, 6))
    mask = rng.random((2, 4, 6)) < 0.6
    mask[:, :, 0] = True
    scores = np.einsum("bhtd,bhsd->bhts", query, key) / np.sqrt(8)
    weights = np.where(mask[:, None], np.exp(scores), 0.0)
    expected = np.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdims=True), value)
    found = attention(*(jnp.asarray(a, jnp.float32) for a in (query, key, value)), Visible(jnp.asarray(mask)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("length", [7, 8, 9, 24, 27])
def test_blocks_of_queries_do_not_change_the_result(monkeypatch, length):
    """Compares values and gradients for one block of at least 8 queries up to three blocks of at most 9."""
    monkeypatch.setattr(attention_module, "MIN_BLOCK", 8)
    monkeypatch.setattr(attention_module, "MAX_BLOCKS", 3)
    rng = np.random.default_rng(length)
    arrays = [jnp.asarray(rng.normal(size=(2, 3, length, 8)), jnp.float32) for _ in range(4)]
    mask = jnp.asarray(np.tril(rng.random((2, length, length)) < 0.6) | np.eye(length, dtype=bool))

    def loss(whole, query, key, value):
        return (whole(query, key, value) * arrays[3]).sum()

    found, expected = (
        jax.value_and_grad(functools.partial(loss, whole), (0, 1, 2))(*arrays[:3])
        for whole in (
            functools.partial(attention, visible=Visible(mask)),
            functools.partial(attention_module._attend, mask=mask, matmul_dtype=jnp.float32, scale=8**-0.5, cap=0.0),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_keys_after_a_block_are_not_computed(monkeypatch):
    widths = []
    plain = attention_module._attend

    def record(query, key, *others):
        widths.append((query.shape[2], key.shape[2]))
        return plain(query, key, *others)

    monkeypatch.setattr(attention_module, "_attend", record)
    for length in (128, 300, 2048):
        array = jnp.zeros((1, 1, length, 8))
        jax.eval_shape(attention, array, array, array, Visible(jnp.zeros((1, length, length), bool)))
    decoding = jnp.zeros((1, 1, 200, 8)), *[jnp.zeros((1, 1, 600, 8))] * 2
    jax.eval_shape(attention, *decoding, Visible(jnp.zeros((1, 200, 600), bool)))
    halves = [(128, 128), (128, 256), (44, 300)]
    assert widths == [(128, 128), *halves, *[(256, 256 * n) for n in range(1, 9)], (200, 600)]


def test_factors_are_rounded_unless_there_is_one_query():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, 2, 4, 8)), jnp.float32) for _ in range(3))
    mask = jnp.ones((1, 4, 4), bool)
    exact, rounded = (attention(query, key, value, Visible(mask), 0, factors) for factors in (None, "bfloat16"))
    assert rounded.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(rounded - exact).max()) < 0.05
    one = attention(query[:, :, :1], key, value, Visible(mask[:, :1]), 0, "bfloat16")
    np.testing.assert_allclose(one, exact[:, :, :1], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_query_that_sees_nothing_is_finite_with_finite_gradients(dtype):
    array = jnp.ones((1, 1, 2, 4), dtype)
    mask = jnp.array([[[True, False], [False, False]]])
    found, pull = jax.vjp(lambda q, k, v: attention(q, k, v, Visible(mask)), array, array, array)
    assert found.dtype == dtype
    assert all(bool(jnp.isfinite(a).all()) for a in (found, *pull(found)))


def logged(monkeypatch, device):
    """Returns the lines that are logged from now on, on a device such as "gpu 8.0"."""
    platform, capability = device.split(" ")
    described, lines = types.SimpleNamespace(platform=platform, compute_capability=capability), []
    monkeypatch.setattr(jax, "devices", lambda: [described])
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(attention_module.LOG, "info", lambda text, *values: lines.append(text % values))
    attention_module._log_einsums.cache_clear()
    return lines


@pytest.mark.parametrize(
    ("device", "dtype", "length", "width", "why_not"),
    [
        ("gpu 8.0", "bfloat16", 4, 64, None),
        ("gpu 12.0", "float16", 4, 64, None),
        ("gpu 7.5", "bfloat16", 4, 64, "no GPU of compute capability 8.0 or later"),
        ("gpu gfx90a", "bfloat16", 4, 64, "no GPU of compute capability 8.0 or later"),  # of AMD
        ("gpu 9.0", "float32", 4, 64, "cuDNN's kernel takes bfloat16 or float16, not float32"),
        ("gpu 9.0", "bfloat16", 3, 64, "cuDNN's kernel takes even numbers of queries and keys, not 3 and 3"),
        ("gpu 9.0", "bfloat16", 4, 60, "cuDNN's kernel takes heads of a multiple of 8 up to 128 units, not of 60"),
        ("gpu 9.0", "bfloat16", 4, 256, "cuDNN's kernel takes heads of a multiple of 8 up to 128 units, not of 256"),
        ("cpu ", "bfloat16", 4, 64, ""),
    ],
)
def test_the_fused_kernel_is_chosen_if_it_fits_or_the_reason_is_logged(
    monkeypatch, device, dtype, length, width, why_not
):
    calls = []
    plain = jax.nn.dot_product_attention

    def record(query, key, value, *, mask, scale, is_causal, implementation):
        calls.append((implementation, is_causal))
        return plain(query, key, value, mask=mask, scale=scale, is_causal=is_causal, implementation="xla")

    lines = logged(monkeypatch, device)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    array = jax.random.normal(jax.random.key(0), (2, 3, length, width), dtype)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (2, length, length))
    found = attention(array, array, array, Visible(mask))
    last = attention(array[:, :, 2:], array, array, Visible(mask[:, 2:]))
    # The last queries see keys before them, which a causal mask would hide.
    assert calls == ([("cudnn", True), ("cudnn", False)] if why_not is None else [])
    assert lines == ([f"attention is two einsums: {why_not}"] if why_not else [])
    monkeypatch.undo()
    expected = attention(*[array.astype(jnp.float32)] * 3, Visible(mask))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=5e-2)
    np.testing.assert_allclose(last.astype(jnp.float32), expected[:, :, 2:], atol=5e-2)


def test_cudnn_does_not_cap_scores_and_a_step_of_decoding_logs_nothing(monkeypatch):
    lines = logged(monkeypatch, "gpu 9.0")
    array = jnp.ones((1, 2, 4, 8), jnp.bfloat16)
    visible = Visible(jnp.ones((1, 4, 4), bool))
    assert fused_kernel(array[:, :, :1], array, visible, 0.0) is None
    assert not lines
    assert fused_kernel(array, array, visible, 0.0) == "cudnn"
    assert fused_kernel(array, array, visible, 30.0) is None
    assert lines == ["attention is two einsums: cuDNN's kernel does not cap scores"]


@pytest.mark.parametrize(
    ("platform", "kernel", "why_not"),
    [("tpu", "splash", ""), ("gpu", None, "cuDNN's kernel is compiled for present GPUs only"), ("cpu", None, "")],
)
def test_the_kernel_is_that_of_the_devices_of_the_mesh(platform, kernel, why_not, monkeypatch):
    """They may be absent, as in a plan. Inside `shard_map` they are the same."""
    lines = logged(monkeypatch, "cpu ")
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    automatic = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.AbstractMesh((2, 1, 1), ("data", "fsdp", "tensor"), automatic, abstract_device=device)
    array, segments = jax.ShapeDtypeStruct((2, 2, 128, 16), jnp.float32), jax.ShapeDtypeStruct((2, 128), jnp.int32)
    found, rows = [], jax.sharding.PartitionSpec("data")

    def choose(array, segments):
        visible = Visible(jnp.ones((len(segments), 128, 128), bool), segments=segments)
        found.append(fused_kernel(array, array, visible, 0.0))
        return array

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(choose, array, segments)
        jax.eval_shape(jax.shard_map(choose, in_specs=rows, out_specs=rows), array, segments)
    assert found == [kernel, kernel]
    assert lines == ([f"attention is two einsums: {why_not}"] if why_not else [])
