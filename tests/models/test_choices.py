"""The choices of a decoder: parity with NumPy in float64, gradients, the cache, packing, a mesh, counts and errors."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batch import PromptBatch
from instructjax.errors import ConfigError
from instructjax.models import flops, sizes, traced_flops
from instructjax.models.attention import Visible, attention, is_local
from instructjax.models.cache import init_cache
from instructjax.models.config import CHOICES, shortest_pattern
from instructjax.models.transformer import LanguageModel, abstract_params
from instructjax.rollout import refilling, sampling
from instructjax.training import parallel
from tests import decoders, fakes

SEGMENTS = [[1] * 7 + [2] * 4]


@pytest.mark.parametrize("name", decoders.CHOICES)
def test_logits_and_a_directional_derivative_equal_numpy_in_float64(name):
    config, rows = decoders.CHOICES[name], fakes.rows_of(SEGMENTS)
    row = [np.asarray(array)[0] for array in rows]
    params = jax.tree.map(np.asarray, fakes.params(LanguageModel(config)))
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    weights = rng.normal(size=(len(row[0]), config.vocab_size))

    def moved(step=0.0):
        shifted = jax.tree.map(lambda leaf, d: leaf.astype(np.float64) + step * d, params, direction)
        return decoders.logits(config, shifted, *row)

    with jax.enable_x64(True):
        model = LanguageModel(dataclasses.replace(config, dtype="float64", param_dtype="float64"))

        def loss(params):
            logits = model.apply({"params": params}, *rows)[0][0]
            return jnp.sum(logits * weights), logits

        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(exact)
        found = np.asarray(logits)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradient, direction)))
    expected = moved()
    assert found.dtype == np.float64
    print(f"largest difference {np.abs(found - expected).max():.1e}, largest value {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    step = 1e-6
    difference = np.sum((moved(step) - moved(-step)) * weights) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-6)


def choices():
    """Draws a decoder with random choices."""
    fields = {name: st.sampled_from(CHOICES[name]) for name in ("norm", "norm_placement", "biases", "query_key_norm")}
    fields |= {name: st.booleans() for name in ("gated", "parallel_residual", "tied", "scaled_embedding")}
    fields |= {name: st.sampled_from([0.0, 2.0]) for name in ("score_cap", "logits_cap")}
    fields |= {
        "positions": st.sampled_from(CHOICES["positions"]),
        "activation": st.sampled_from(CHOICES["activation"]),
        "num_kv_heads": st.sampled_from([None, 1, 2]),
        "window_pattern": st.sampled_from(["DL", "L", "LLD"]),
        "local_window": st.sampled_from([None, 3]),
        "cache_by_layer": st.booleans(),
    }
    small = dataclasses.replace(decoders.BASE, num_layers=2)
    return st.fixed_dictionaries(fields).map(lambda drawn: dataclasses.replace(small, **drawn))


def check_invariants(config):
    """Checks that later tokens change nothing, and that neither packing nor a cache does; one compiled program each."""
    tokens, segments, positions = fakes.rows_of([[1] * 5 + [2] * 5])
    params = fakes.params(LanguageModel(config))
    full = fakes.logits_of(config, params, tokens, segments, positions)
    changed = tokens.at[0, 3].set((tokens[0, 3] + 1) % config.vocab_size)
    other = fakes.logits_of(config, params, changed, segments, positions)
    # The tokens before it and the other text do not see it.
    np.testing.assert_allclose(np.delete(other, [3, 4], axis=1), np.delete(full, [3, 4], axis=1), atol=1e-5)
    assert float(jnp.abs(other - full)[0, 3].max()) > 1e-3
    step = fakes.compiled(LanguageModel(config))
    cache, found = init_cache(config, 2, 7), []
    apart = [array.reshape(2, 5) for array in (tokens, jnp.ones_like(segments), positions)]
    for i in range(5):  # both texts, each in its row
        logits, cache = step(params, *(array[:, i : i + 1] for array in apart), cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1).reshape(full.shape), full, atol=2e-5)


@settings(deadline=None, max_examples=2, derandomize=True)
@given(choices())
def test_causality_packing_and_the_cache_for_random_choices(config):
    check_invariants(config)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(choices())
def test_causality_packing_and_the_cache_for_many_random_choices(config):
    check_invariants(config)


def test_a_ring_cache_samples_the_same_tokens():
    config = dataclasses.replace(decoders.GEMMA, num_layers=2, window_pattern="LD")
    model, params = LanguageModel(config), fakes.params(LanguageModel(config))
    segments = (np.arange(5) >= np.array([[0], [2], [4], [1]])).astype(np.int32)
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, size=segments.shape) * segments
    prompts = PromptBatch(jnp.asarray(tokens, jnp.int32), jnp.asarray(segments))
    keys = sampling.row_keys(jax.random.key(0), 4)
    given = dict(max_response=6, eos_id=1, pad_id=0)
    whole, _ = sampling.sample(model, params, prompts, keys, sampling.categorical(), **given)
    refilled, _ = refilling.sample(model, params, prompts, keys, sampling.categorical(), rows=2, refill=1, **given)
    np.testing.assert_array_equal(refilled.tokens, whole.tokens)
    np.testing.assert_allclose(refilled.log_probs, whole.log_probs, atol=1e-5)


def test_a_mesh_does_not_change_loss_and_gradient():
    config = dataclasses.replace(
        decoders.LLAMA, num_layers=1, d_model=16, query_key_norm="width", vocab_size=20, num_heads=8, num_kv_heads=2
    )
    model, params = LanguageModel(config), fakes.params(LanguageModel(config))
    rows = [array.repeat(4, 0) for array in fakes.rows_of([[1] * 5 + [2] * 3])]

    def loss(params):
        return jnp.mean(jax.nn.log_softmax(model.apply({"params": params}, *rows)[0])[..., 0])

    expected = jax.jit(jax.value_and_grad(loss))(params)
    keys = {"mode": "jit", "data": 2, "fsdp": 2, "tensor": 2, "shard_optimizer_state": False}
    with parallel.on_mesh(ml_collections.ConfigDict(keys)):
        placed = jax.device_put(params, parallel.shardings(params, jax.sharding.get_mesh()))
        kernel = placed["trunk"]["blocks"]["attention"]["key"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (1, 8, 4)  # of [1, 16, 8]
        found = jax.jit(jax.value_and_grad(loss))(placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_shared_heads_must_divide_over_the_mesh():
    assert ("num_kv_heads", 2, "tensor", 4) in parallel.uneven_sides(decoders.LLAMA, (1, 1, 4))
    assert ("num_kv_heads", 4, "tensor", 8) not in parallel.uneven_sides(decoders.BASE, (1, 1, 8))


@pytest.mark.parametrize("name", decoders.CHOICES)
def test_counts_are_those_of_the_tree_the_trace_and_the_cache(name):
    config = decoders.CHOICES[name]
    model, tokens = LanguageModel(config), jax.ShapeDtypeStruct((2, 6), jnp.int32)
    params = abstract_params(model)
    assert sizes.count_parameters(config) == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    program = jax.jit(lambda p, t: model.apply({"params": p}, t, t, t)[0]).trace(params, tokens).jaxpr
    assert traced_flops.count_matmul_flops(program) == flops.forward_flops(config, 2, 6, 6, slots=6)
    cache = jax.eval_shape(functools.partial(init_cache, config, 3, 8))
    assert flops.cache_bytes(config, 3, 8) == sum(x.size * 4 for x in jax.tree.leaves((cache.keys, cache.values)))


def test_shared_heads_have_gradients_through_rounded_factors():
    """In float32 they are those of repeated keys and values, summed."""
    rng = np.random.default_rng(0)
    query, *shared = (jnp.asarray(rng.normal(size=(2, heads, 6, 4)), jnp.float32) for heads in (4, 2, 2))
    mask = Visible(jnp.tril(jnp.ones((2, 6, 6), bool)))

    def gradient(repeats, dtype):
        def loss(key, value):
            return jnp.sum(jnp.sin(attention(query, key.repeat(repeats, 1), value.repeat(repeats, 1), mask, 0, dtype)))

        return jax.grad(loss, (0, 1))(*shared)

    repeated, exact, rounded = gradient(2, None), gradient(1, None), gradient(1, "bfloat16")
    for a, b, c in zip(repeated, exact, rounded, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
        assert 1e-5 < float(jnp.abs(c - b).max()) < 0.05


def test_a_resized_model_has_no_shared_heads():
    assert sizes.resized(decoders.GEMMA, "small").kv_heads == 12
    assert sizes.resized(decoders.GEMMA, "small").query_scalar is None


def test_a_size_of_layers_by_width_keeps_the_heads_of_the_model():
    found = sizes.resized(decoders.GEMMA, f"3x{4 * decoders.GEMMA.d_head}")
    assert (found.num_layers, found.d_model, found.num_heads) == (3, 4 * decoders.GEMMA.d_head, 4)
    assert (found.d_head, found.d_ff) == (decoders.GEMMA.d_head, 4 * found.d_model)
    assert (found.vocab_size, found.norm, found.positions) == (
        decoders.GEMMA.vocab_size,
        decoders.GEMMA.norm,
        decoders.GEMMA.positions,
    )


@pytest.mark.parametrize("size", ["", "x64", "0x64", "2x0", "2x64x2", "2 x 64", "7b"])
def test_other_texts_are_not_sizes(size):
    assert not sizes.is_size(size)


def test_a_width_that_heads_do_not_divide_is_refused():
    width = decoders.GEMMA.d_head + 1
    message = f"^size: expected a width that is a multiple of d_head \\({decoders.GEMMA.d_head}\\), found '2x{width}'$"
    with pytest.raises(ConfigError, match=message):
        sizes.resized(decoders.GEMMA, f"2x{width}")


def test_patterns_of_layers():
    found = [bool(is_local("LLD", layer)) for layer in range(7)]
    assert found == [True, True, False, True, True, False, True]
    assert shortest_pattern("DLDL", 9) == "DL" and shortest_pattern("LLLLLD", 4) == "L"
    assert shortest_pattern("DDL", 9) == "DDL" and shortest_pattern("D", 10**9) == "D"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, r"model.num_kv_heads: expected a divisor of num_heads \(4\), found 3"),
        ({"norm": "batch"}, "model.norm: expected one of layer, rms, rms_unit_offset, found 'batch'"),
        ({"window_pattern": "D"}, "model.window_pattern: expected a text of D and L, at least one L, found 'D'"),
        ({"rotary_fraction": 0.6, "d_head": 5}, "model.rotary_fraction: expected an even width x d_head, found 0.6"),
        ({"rotary_scaling": "ntk"}, "model.rotary_scaling: expected one of linear, llama3, yarn or '', found 'ntk'"),
        ({"rotary_scaling": "yarn"}, "model.rotary_original_length: expected tokens, for yarn, found None"),
        ({"rotary_local_base": 1e4}, "model.rotary_local_base: expected local_window with it, found 10000.0"),
        (
            {"positions": "learned", "rotary_scaling": "linear"},
            "model.rotary_scaling: expected positions 'rotary' with it, found 'linear'",
        ),
        ({"rotary_slow": 4.0}, "model.rotary_slow: expected more than 0, below rotary_fast, found 4.0"),
        ({"score_cap": -1.0}, "model.score_cap: expected at least 0, found -1.0"),
    ],
)
def test_choices_that_do_not_exist_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(decoders.LLAMA, **change)
