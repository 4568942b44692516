"""Splash attention: interpreted, against two einsums; unsupported arrays; compiled for absent TPUs."""

import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models import attention as attention_module
from instructjax.models import flash
from instructjax.models.attention import Visible, attention, attention_mask, band_mask, branch_mask
from instructjax.models.cache import init_cache
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, abstract_params
from instructjax.planning import chips
from instructjax.rollout import sampling
from tests import fakes

B, H, T, D, WINDOW = 2, 2, 256, 16, 40
SCALE = D**-0.5


def rows(groups=H):
    """Returns arrays with two texts in one row and one text after padding in the other, and what their queries see."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(B, heads, T, D)), jnp.float32) for heads in (H, groups, groups, H)]
    segments = np.ones((B, T), np.int32)
    segments[0, 100:], segments[1, :30] = 2, 0
    columns = jnp.arange(T)[None]
    dense = attention_mask(columns, columns, jnp.asarray(segments), jnp.asarray(segments))
    banded = dense & band_mask(columns, columns, WINDOW)
    return arrays, jnp.asarray(segments), dense, banded


@pytest.mark.parametrize(("banded", "groups", "cap"), [(None, H, 0.0), (False, H, 0.0), (True, 1, 0.0), (None, 1, 2.0)])
def test_the_kernel_is_the_einsums_with_their_gradients(banded, groups, cap):
    arrays, segments, dense, near = rows(groups)
    odd = None if banded is None else jnp.asarray(banded)
    real = (segments > 0)[:, None, :, None]

    def loss(whole, *arrays):
        return jnp.sum(jnp.where(real, whole(*arrays), 0) * weights)

    *arrays, weights = arrays
    window = None if banded is None else WINDOW

    def fused(query, *others):
        return flash.attention(query * SCALE, *others, segments, odd, window, cap=cap or None, interpret=True)

    einsums = functools.partial(
        attention_module._einsums,
        mask=near if banded else dense,
        matmul_dtype=jnp.dtype(jnp.float32),
        scale=SCALE,
        cap=cap,
    )
    found, expected = (
        jax.value_and_grad(functools.partial(loss, whole), (0, 1, 2))(*arrays) for whole in (fused, einsums)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "reason"),
    [
        (256, 256, "bfloat16", None),
        (1, 256, "bfloat16", "queries of a cache"),
        (200, 200, "bfloat16", "200 tokens, not a multiple of 128"),
        (256, 256, "float16", "arrays of float16"),
    ],
)
def test_unsupported_arrays_are_reported_with_a_reason(queries, keys, dtype, reason):
    assert flash.why_not(*(jnp.zeros((1, 1, length, 8), dtype) for length in (queries, keys))) == reason


def position_of(row):
    """Returns the positions of parts (segment, branch, length): those of a branch continue those of its prefix."""
    positions, prefix = [], 0
    for _, branch, length in row:
        prefix = prefix if branch else length
        positions += range(prefix if branch else 0, (prefix if branch else 0) + length)
    return positions


@pytest.mark.parametrize(("banded", "groups", "cap"), [(None, H, 0.0), (None, 1, 2.0), (False, H, 0.0), (True, H, 0.0)])
def test_continuations_of_a_prefix_are_the_einsums_with_their_gradients(banded, groups, cap):
    """A row with two prompts and their answers, and one with a prompt without answers and padding."""
    arrays, _, _, _ = rows(groups)
    *arrays, weights = arrays
    lengths = [[(1, 0, 70), (1, 1, 30), (1, 2, 40), (2, 0, 10), (2, 1, 60), (2, 2, 46)], [(1, 0, 200), (0, 0, 56)]]
    segments, branches = (
        jnp.asarray([[number for *part, length in row for number in [part[i]] * length] for row in lengths])
        for i in range(2)
    )
    columns = jnp.arange(T)[None]
    mask = attention_mask(columns, columns, segments, segments) & branch_mask(branches, branches)
    if banded:
        positions = jnp.asarray([position_of(row) for row in lengths])
        mask &= band_mask(positions, positions, WINDOW)
    local, window = (None, None) if banded is None else (jnp.asarray(banded), WINDOW)
    real = (segments > 0)[:, None, :, None]

    def loss(whole, *arrays):
        return jnp.sum(jnp.where(real, whole(*arrays), 0) * weights)

    def fused(query, *others):
        given = query * SCALE, *others, segments, local, window
        return flash.attention(*given, branches=branches, cap=cap or None, interpret=True)

    einsums = functools.partial(
        attention_module._einsums, mask=mask, matmul_dtype=jnp.dtype(jnp.float32), scale=SCALE, cap=cap
    )
    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, whole), (0, 1, 2)))(*arrays) for whole in (fused, einsums)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


def test_queries_of_a_cache_are_einsums_and_a_tpu_logs_it(monkeypatch):
    lines = []
    monkeypatch.setattr(attention_module.LOG, "info", lambda text, *values: lines.append(text % values))
    attention_module._log_einsums.cache_clear()
    arrays, _, dense, _ = rows()
    attention(*arrays[:3], Visible(dense))
    assert not lines
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    attention(*arrays[:3], Visible(dense))
    assert lines == ["attention is two einsums: queries of a cache"]


def test_prefill_attends_to_its_own_tokens_and_then_fills_the_cache(monkeypatch):
    """With the kernel, the hidden states and the cache are those of attention over the whole cache."""
    config = TransformerConfig(
        vocab_size=16, num_layers=2, d_model=32, num_heads=2, d_head=16, d_ff=64, max_length=160, local_window=40
    )
    model = LanguageModel(config)
    params = fakes.params(model, noise=0.1)
    segments = jnp.asarray(np.arange(128) >= np.array([[0], [30]]), jnp.int32)
    prompts = (segments * 3, segments, sampling.positions_of(segments))
    token = (jnp.full((2, 1), 5), jnp.ones((2, 1), jnp.int32), prompts[2][:, -1:] + 1)
    calls = []

    def kernel(*arguments, **options):
        calls.append(arguments)
        return fused(*arguments, **options, interpret=True)

    def prefill_and_decode():
        hidden, cache = model.apply({"params": params}, *prompts, init_cache(config, 2, 140), method="hidden")
        return hidden[:, -1], cache, model.apply({"params": params}, *token, cache, method="hidden")[0]

    expected, fused = prefill_and_decode(), flash.attention
    monkeypatch.setattr(flash, "attention", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    found = prefill_and_decode()
    assert [call[1].shape for call in calls] == [(2, 2, 128, 16)] * 2  # once per layer, and not to decode
    real = np.asarray(found[1].segments > 0)[:, None, :, None]
    for one, other in zip(*(jax.tree.leaves((x[1].keys, x[1].values)) for x in (found, expected)), strict=True):
        np.testing.assert_allclose(np.where(real, one, 0), np.where(real, other, 0), atol=1e-4)
    for i in (0, 2):
        np.testing.assert_allclose(found[i], expected[i], atol=1e-4)


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 2)])
def test_a_tpu_gets_the_kernel_for_packed_rows_and_for_branches(mesh):
    config = TransformerConfig(
        **dict(vocab_size=256, num_layers=2, d_model=256, num_heads=4, d_head=64, d_ff=512, max_length=256),
        dtype="bfloat16",
        local_window=64,
    )
    model = LanguageModel(config)
    devices = chips.devices(chips.parse("v5e:2x2"))[: int(np.prod(mesh))]
    mesh = jax.sharding.Mesh(
        np.array(devices).reshape(mesh),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    row = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    params = abstract_params(model)

    def loss(params, tokens, segments, positions, **branches):
        logits, _ = model.apply({"params": params}, tokens, segments, positions, **branches)
        return logits.mean()

    with jax.set_mesh(mesh):
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        compiled = jax.jit(jax.grad(loss), in_shardings=whole).trace(params, row, row, row).lower().compile().as_text()
        branched = jax.jit(lambda *a: jax.grad(loss)(*a[:-1], branches=a[-1]), in_shardings=whole)
        branched_text = branched.trace(params, row, row, row, row).lower().compile().as_text()
    assert "splash" in compiled and "tpu_custom_call" in compiled
    assert "splash" in branched_text


@pytest.mark.absent_hardware
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.skipif(os.environ.get("JAX_PLATFORMS") != "cpu", reason="compiles for absent chips with JAX_PLATFORMS=cpu")
def test_prefill_on_a_tpu_gets_the_kernel():
    config = TransformerConfig(
        **dict(vocab_size=256, num_layers=2, d_model=256, num_heads=4, d_head=64, d_ff=512, max_length=256),
        dtype="bfloat16",
        cache_by_layer=False,
    )
    model = LanguageModel(config)
    row = jax.ShapeDtypeStruct((4, 128), jnp.int32)
    params = abstract_params(model)

    def prefill(params, *prompts):
        hidden, cache = model.apply({"params": params}, *prompts, init_cache(config, 4, 200), method="hidden")
        return hidden[:, -1], cache

    devices = np.array(chips.devices(chips.parse("v5e:2x2"))[:1]).reshape(1, 1, 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        compiled = jax.jit(prefill, in_shardings=whole).trace(params, row, row, row).lower().compile().as_text()
    assert "splash" in compiled
    assert not re.search(r"\[4,4,128,(128|200)\]", compiled)  # no scores of queries by keys, or by slots of the cache
