"""The decoder: its layers, precision, initial weights, and parity with NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import CheckpointError, ConfigError
from instructjax.models.attention import Visible
from instructjax.models.block import Block, Dense
from instructjax.models.cache import init_cache
from instructjax.models.transformer import LanguageModel, ScalarModel, graft_trunk
from tests import fakes


def test_logits_at_selected_positions_are_those_of_the_whole():
    rows = fakes.rows_of([[1] * 7, [0, 0] + [1] * 5])
    model, params = LanguageModel(fakes.DECODER), fakes.params(LanguageModel(fakes.DECODER))
    hidden, _ = fakes.compiled(model, "hidden")(params, *rows)
    last = model.apply({"params": params}, hidden[:, -3:], method="unembed")
    np.testing.assert_allclose(last, fakes.logits_of(fakes.DECODER, params, *rows)[:, -3:], atol=1e-5)


@pytest.mark.parametrize("config", [fakes.DECODER, fakes.BANDED_DECODER], ids=["dense", "banded"])
def test_scan_equals_unrolled_equals_a_loop_over_blocks(config):
    tokens, segments, positions = fakes.rows_of([[1] * 8])
    model, params = LanguageModel(config), fakes.params(LanguageModel(config))
    scanned, _ = fakes.compiled(model, "hidden")(params, tokens, segments, positions)
    unrolled = LanguageModel(dataclasses.replace(config, unroll=config.num_layers))
    found, _ = fakes.compiled(unrolled, "hidden")(params, tokens, segments, positions)
    np.testing.assert_allclose(found, scanned, atol=1e-5)
    trunk = params["trunk"]
    x = trunk["token_embedding"][tokens] + trunk["position_embedding"][positions]
    dense = jnp.tril(jnp.ones((1, 8, 8), bool))
    banded = None if config.local_window is None else jnp.triu(dense, -config.local_window + 1)
    visible = Visible(dense, banded)
    run = jax.jit(lambda block, x, layer: Block(config).apply(block, (x, None, None), layer, 0, visible, None, True))
    for layer in range(config.num_layers):
        block = {"params": jax.tree.map(lambda leaf, layer=layer: leaf[layer], trunk["blocks"])}
        (x, _, _), _ = run(block, x, layer)
    mean, std = x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = (x - mean) / std * trunk["final_norm"]["scale"] + trunk["final_norm"]["bias"]
    np.testing.assert_allclose(scanned, expected, atol=1e-5)


@functools.cache
def gradients_of(config):
    rows = fakes.rows_of([[1] * 6 + [0] * 2, [0] * 3 + [2] * 5])
    model = fakes.compiled(LanguageModel(config), deterministic=False)

    def loss(params):
        logits, _ = model(params, *rows, key=jax.random.key(5))
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0] * (rows[1] > 0))

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
    "change", [*({"remat": remat} for remat in ("none", "offload", "attention", "all")), {"remat": "all", "unroll": 2}]
)
def test_rematerialization_and_unrolling_do_not_change_gradients(change):
    config = dataclasses.replace(fakes.BANDED_DECODER, dropout=0.3)
    params = fakes.params(LanguageModel(config))
    expected, found = (gradients_of(c)(params) for c in (config, dataclasses.replace(config, **change)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    kernels = [layer["kernel"] for layer in expected["trunk"]["blocks"]["attention"].values()]
    assert all(float(jnp.abs(kernel).max()) > 1e-4 for kernel in kernels)


def test_dropout_is_off_or_a_function_of_its_key():
    rows, params = fakes.rows_of([[1] * 6]), fakes.params(LanguageModel(fakes.DECODER))
    model = LanguageModel(dataclasses.replace(fakes.DECODER, dropout=0.3))

    def noisy(seed):
        return fakes.compiled(model, deterministic=False)(params, *rows, key=jax.random.key(seed))[0]

    plain = fakes.logits_of(fakes.DECODER, params, *rows)
    np.testing.assert_array_equal(fakes.compiled(model)(params, *rows)[0], plain)
    np.testing.assert_array_equal(noisy(0), noisy(0))
    assert float(jnp.abs(noisy(0) - noisy(1)).max()) > 1e-2
    assert float(jnp.abs(noisy(0) - plain).max()) > 1e-2


def test_bfloat16_computes_near_float32_and_keeps_its_parameters():
    half = dataclasses.replace(fakes.BANDED_DECODER, dtype="bfloat16")
    rows, model = fakes.rows_of([[1] * 8]), LanguageModel(half)
    params = jax.jit(model.init)(jax.random.key(0), *rows)["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    logits, cache = fakes.compiled(model)(params, *rows, init_cache(half, 1, 8))
    assert logits.dtype == jnp.float32 and {keys.dtype for keys in cache.keys} == {jnp.dtype("bfloat16")}
    hidden, _ = jax.eval_shape(fakes.compiled(model, "hidden"), params, *rows)
    assert hidden.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(logits - fakes.logits_of(fakes.BANDED_DECODER, params, *rows)).max()) < 0.02
    scalar = ScalarModel(half)
    values = jax.eval_shape(fakes.compiled(scalar), fakes.params(scalar), *rows)
    assert values.dtype == jnp.float32
    slopes = jax.eval_shape(gradients_of(half), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(slopes)} == {"float32"}


def test_the_embedding_is_tied():
    rows, params = fakes.rows_of([[1] * 4]), fakes.params(LanguageModel(fakes.DECODER))
    assert set(params) == {"trunk"}
    unused = next(token for token in range(fakes.DECODER.vocab_size) if token not in np.asarray(rows[0]))
    embedding = params["trunk"]["token_embedding"]
    changed = {"trunk": {**params["trunk"], "token_embedding": embedding.at[unused].multiply(2.0)}}
    before, after = fakes.logits_of(fakes.DECODER, params, *rows), fakes.logits_of(fakes.DECODER, changed, *rows)
    np.testing.assert_allclose(after[..., unused], 2 * before[..., unused], rtol=1e-4)
    np.testing.assert_array_equal(np.delete(after, unused, -1), np.delete(before, unused, -1))


def test_initial_scales():
    config = dataclasses.replace(
        fakes.DECODER, d_model=256, num_heads=4, d_head=64, d_ff=512, vocab_size=500, max_length=200
    )
    rows = fakes.rows_of([[1, 1]])
    init = jax.jit(ScalarModel(config).init)
    trunk = init(jax.random.key(0), *rows)["params"]["trunk"]
    residual = 0.02 / np.sqrt(2 * config.num_layers)
    blocks = trunk["blocks"]
    for leaf, std in (
        (trunk["token_embedding"], 0.02),
        (trunk["position_embedding"], 0.02),
        (blocks["attention"]["query"]["kernel"], 0.02),
        (blocks["attention"]["out"]["kernel"], residual),
        (blocks["feed_forward"]["in"]["kernel"], 0.02),
        (blocks["feed_forward"]["out"]["kernel"], residual),
    ):
        assert float(jnp.std(leaf)) == pytest.approx(std, rel=0.03)
    layers = blocks["attention"]["query"]["kernel"]
    assert float(jnp.abs(layers[0] - layers[1]).max()) > 0.01  # each layer draws its own
    heads = [init(jax.random.key(seed), *rows)["params"]["head"] for seed in range(8)]
    kernels = jnp.stack([head["kernel"] for head in heads])
    assert float(jnp.std(kernels)) == pytest.approx(257**-0.5, rel=0.05)
    assert all(float(head["bias"]) == 0 for head in heads)


def test_the_bias_of_the_scalar_model_shifts_every_value():
    rows, model = fakes.rows_of([[1] * 5]), ScalarModel(fakes.DECODER)
    params = fakes.params(model)
    shifted = {**params, "head": {**params["head"], "bias": params["head"]["bias"] + 2.5}}
    before, after = (fakes.compiled(model)(p, *rows) for p in (params, shifted))
    assert before.shape == (1, 5)
    np.testing.assert_allclose(after, before + 2.5, rtol=1e-5)


def test_the_model_equals_numpy_in_float64():
    rows = fakes.rows_of([[1] * 5 + [2] * 3])
    params = fakes.params(LanguageModel(fakes.BANDED_DECODER))
    trunk = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["trunk"])
    tokens, segments, positions = (np.asarray(a)[0] for a in rows)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    x = trunk["token_embedding"][tokens] + trunk["position_embedding"][positions]
    for layer in range(fakes.BANDED_DECODER.num_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], trunk["blocks"])
        normed = norm(x, p["attention_norm"])
        query, key, value = (dense(normed, p["attention"][name]).reshape(8, 2, 8) for name in ("query", "key", "value"))
        mixed = np.zeros((8, 2, 8))
        for i in range(8):
            first = max(0, i - 2) if layer % 2 else 0
            seen = [j for j in range(first, i + 1) if segments[j] == segments[i]]
            for head in range(2):
                weights = np.exp(key[seen, head] @ query[i, head] / np.sqrt(8))
                mixed[i, head] = weights / weights.sum() @ value[seen, head]
        x = x + dense(mixed.reshape(8, 16), p["attention"]["out"])
        inner = dense(norm(x, p["feed_forward_norm"]), p["feed_forward"]["in"])
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + dense(inner, p["feed_forward"]["out"])
    expected = norm(x, trunk["final_norm"]) @ trunk["token_embedding"].T
    np.testing.assert_allclose(fakes.logits_of(fakes.BANDED_DECODER, params, *rows)[0], expected, atol=2e-5)
    with jax.enable_x64(True):
        exact = dataclasses.replace(fakes.BANDED_DECODER, dtype="float64", param_dtype="float64")
        found = np.asarray(fakes.logits_of(exact, {"trunk": trunk}, *rows)[0])
    assert found.dtype == np.float64
    print(f"largest difference {np.abs(found - expected).max():.1e}, largest value {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_graft_replaces_the_trunk_by_a_copy_and_keeps_the_head():
    language, scalar = fakes.params(LanguageModel(fakes.DECODER), 1), fakes.params(ScalarModel(fakes.DECODER), 2)
    grafted = graft_trunk(scalar, language)
    jax.tree.map(np.testing.assert_array_equal, grafted, {"trunk": language["trunk"], "head": scalar["head"]})
    jax.tree.map(lambda leaf: leaf.delete(), language)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grafted))


def test_the_error_of_graft_names_both_sides():
    scalar = fakes.params(ScalarModel(fakes.DECODER))
    wide = fakes.params(LanguageModel(dataclasses.replace(fakes.DECODER, vocab_size=23)))
    with pytest.raises(
        CheckpointError, match=r"expected token_embedding float32\[19, 12\]; found token_embedding float32\[23, 12\]$"
    ):
        graft_trunk(scalar, wide)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), scalar)
    with pytest.raises(
        CheckpointError, match=r"final_norm/bias float32\[12\].*; found .*final_norm/bias bfloat16\[12\]"
    ):
        graft_trunk(scalar, half)
    with pytest.raises(CheckpointError, match=r"position_embedding float32.*; found position_embedding absent"):
        fewer = {name: leaf for name, leaf in scalar["trunk"].items() if name != "position_embedding"}
        graft_trunk(scalar, {"trunk": fewer})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected at least 1, found 0"),
        ({"dropout": 1.0}, "dropout: expected a rate from 0 to below 1, found 1.0"),
        ({"local_window": 0}, "local_window: expected None or at least 1, found 0"),
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, float64, found 'int8'"),
        ({"param_dtype": "float64"}, "param_dtype: expected JAX_ENABLE_X64=1 with float64, found it off"),
    ],
)
def test_invalid_configs_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(fakes.DECODER, **change)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """In bfloat16, a sum of 4,096 numbers around 1 would stop at about 256."""
    config = dataclasses.replace(fakes.DECODER, dtype="bfloat16")
    dense, rows = Dense(config, 8), 4096
    x, weights = jnp.ones((1, rows, 4), jnp.bfloat16), jax.random.uniform(jax.random.key(0), (1, rows, 8), minval=0.5)
    weights = weights.astype(jnp.bfloat16)
    params = {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}
    _, pull = jax.vjp(lambda params: dense.apply({"params": params}, x), params)
    (found,) = pull(weights)
    np.testing.assert_allclose(found["bias"], np.asarray(weights, np.float64).sum((0, 1)), rtol=1e-6)


def test_a_dense_layer_rounds_the_sum_of_product_and_bias_once():
    layer = Dense(dataclasses.replace(fakes.DECODER, dtype="bfloat16"), 64)
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, ((1, 8, 32), (32, 64)), strict=False)
    )
    bias = jax.random.normal(keys[2], (64,))
    found = layer.apply({"params": {"kernel": kernel.astype(jnp.float32), "bias": bias}}, x)
    product = jnp.matmul(x.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest")
    once = product + bias
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16, and the rounding of the sum in float32.
    assert bool((jnp.abs(found.astype(jnp.float32) - once) <= 2**-8 * jnp.abs(once) + 1e-5).all())
    twice = (product.astype(jnp.bfloat16) + bias.astype(jnp.bfloat16)).astype(jnp.float32)
    assert not bool((jnp.abs(twice - once) <= 2**-8 * jnp.abs(once) + 1e-5).all())
