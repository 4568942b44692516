"""The decoder: what a token can see, the cache, precision, and parity with NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import CheckpointError, ConfigError
from instructjax.models.attention import Visible
from instructjax.models.block import Block
from instructjax.models.cache import init_cache
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel, graft_trunk

CONFIG = TransformerConfig(
    vocab_size=19, num_layers=3, d_model=12, num_heads=2, d_head=8, d_ff=20, max_length=16, local_window=None
)
BANDED = dataclasses.replace(CONFIG, num_layers=2, local_window=3)


def positions_of(segments):
    segments = np.asarray(segments)
    positions = np.zeros_like(segments)
    for row, out in zip(segments, positions, strict=True):
        for name in set(row) - {0}:
            out[row == name] = np.arange((row == name).sum())
    return jnp.asarray(positions)


def batch(segments, seed=0):
    segments = jnp.asarray(segments, jnp.int32)
    tokens = jax.random.randint(jax.random.key(seed), segments.shape, 0, CONFIG.vocab_size)
    return tokens, segments, positions_of(segments)


def parameters(model, seed=0):
    """Large random parameters, biases and norms too: nothing is hidden by a zero or a one."""
    row = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), row, row, row)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@functools.cache
def compiled(model, method="__call__", deterministic=True):
    """The model as a compiled function of its parameters, its inputs and a key for dropout."""

    def run(params, *inputs, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, *inputs, deterministic=deterministic, rngs=rngs, method=method)

    return jax.jit(run)


def logits_of(config, params, tokens, segments, positions):
    return compiled(LanguageModel(config))(params, tokens, segments, positions)[0]


@functools.cache
def influence_of(config):
    """A function of parameters and one row, to [T, T] bool: whether the hidden state at the
    first index has a gradient in the token at the second."""

    def influence(params, tokens, segments, positions):
        # Each place of the row gets an embedding of its own, so that the gradient tells places apart.
        places = jnp.arange(tokens.shape[1])[None]
        model = LanguageModel(dataclasses.replace(config, vocab_size=tokens.shape[1]))

        def hidden(table):
            trunk = {**params["trunk"], "token_embedding": table}
            return model.apply({"params": {"trunk": trunk}}, places, segments, positions, method="hidden")[0][0]

        return jnp.abs(jax.jacobian(hidden)(params["trunk"]["token_embedding"][tokens[0]])).sum((1, 3)) > 0

    return jax.jit(influence)


@pytest.mark.parametrize("segments", [[1] * 8, [1, 1, 1, 2, 2, 3, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]])
def test_gradient_reaches_earlier_tokens_of_the_segment_and_no_others(segments):
    found = influence_of(CONFIG)(parameters(LanguageModel(CONFIG)), *batch([segments]))
    for i, mine in enumerate(segments):
        if mine:
            expected = [j <= i and other == mine for j, other in enumerate(segments)]
            np.testing.assert_array_equal(found[i], expected)


def test_a_banded_layer_sees_the_window_and_a_dense_layer_all():
    length, window = 10, 3
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    # One block is run alone, as even and as odd layers.
    config = dataclasses.replace(BANDED, num_layers=1)
    params = parameters(LanguageModel(config))["trunk"]["blocks"]
    block = {"params": jax.tree.map(lambda leaf: leaf[0], params)}
    dense = jnp.asarray(distance >= 0)[None]
    banded = jnp.asarray((distance >= 0) & (distance < window))[None]
    x = jax.random.normal(jax.random.key(3), (1, length, config.d_model))

    def run(x, layer):
        (y, _, _), _ = Block(config).apply(block, (x, None, None), layer, 0, Visible(dense, banded), True)
        return y[0]

    jacobian = jax.jit(jax.jacobian(run))
    for layer, mask in ((0, dense), (1, banded), (2, dense), (3, banded)):
        reach = jnp.abs(jacobian(x, layer)).sum((1, 2, 4)) > 0
        np.testing.assert_array_equal(reach, mask[0])


def test_a_wide_window_changes_nothing_and_a_narrow_one_does():
    rows = batch([[1] * 8])
    params = parameters(LanguageModel(BANDED))
    dense, wide, narrow = (
        logits_of(dataclasses.replace(BANDED, local_window=window), params, *rows) for window in (None, 8, 3)
    )
    np.testing.assert_array_equal(wide, dense)
    np.testing.assert_allclose(narrow[:, :3], dense[:, :3], atol=1e-5)
    assert float(jnp.abs(narrow[:, 3:] - dense[:, 3:]).min(-1).max()) > 1e-3


@pytest.mark.parametrize("config", [CONFIG, BANDED], ids=["dense", "banded"])
@pytest.mark.parametrize("pad", [(4, 0), (0, 4), (1, 3)])
def test_padding_changes_no_output(config, pad):
    tokens, segments, positions = batch([[1] * 6, [1] * 6])
    params = parameters(LanguageModel(config))
    alone = logits_of(config, params, tokens, segments, positions)
    widths = ((0, 0), pad)
    padded = logits_of(
        config,
        params,
        jnp.pad(tokens, widths, constant_values=7),
        jnp.pad(segments, widths),
        jnp.pad(positions, widths, constant_values=5),
    )
    assert bool(jnp.isfinite(padded).all())
    np.testing.assert_allclose(padded[:, pad[0] : pad[0] + 6], alone, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, BANDED], ids=["dense", "banded"])
def test_packed_rows_equal_separate_rows(config):
    packed = batch([[1] * 4 + [2] * 4 + [3] * 4])
    separate = [a.reshape(3, 4) for a in packed]
    params, scalar = parameters(LanguageModel(config)), ScalarModel(config)
    logits = logits_of(config, params, *separate).reshape(1, 12, -1)
    np.testing.assert_allclose(logits_of(config, params, *packed), logits, atol=1e-5)
    params = parameters(scalar)
    values = compiled(scalar)(params, *separate).reshape(1, 12)
    np.testing.assert_allclose(compiled(scalar)(params, *packed), values, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, BANDED], ids=["dense", "banded"])
def test_continuations_beside_each_other_equal_each_alone(config):
    """A prefix of 3 with continuations of 4, 2 and 3 tokens, then another prefix of 2 with one of 4, then padding."""
    layout = [(1, 3, (4, 2, 3)), (2, 2, (4,))]
    columns = {"segments": [], "branches": [], "positions": []}
    for segment, prefix, sizes in layout:
        for branch, size in enumerate((prefix, *sizes)):
            columns["segments"] += [segment] * size
            columns["branches"] += [branch] * size
            columns["positions"] += [*range(prefix if branch else 0, (prefix if branch else 0) + size)]
    segments, branches, positions = (jnp.array([[*column, 0, 0]]) for column in columns.values())
    tokens, _, _ = batch(segments)
    params, scalar = parameters(LanguageModel(config)), parameters(ScalarModel(config))
    found, _ = LanguageModel(config).apply({"params": params}, tokens, segments, positions, branches=branches)
    scalars = ScalarModel(config).apply({"params": scalar}, tokens, segments, positions, branches=branches)
    for segment, prefix, sizes in layout:
        for branch in range(1, len(sizes) + 1):
            own = np.flatnonzero((segments[0] == segment) & ((branches[0] == 0) | (branches[0] == branch)))
            row = tokens[:, own], jnp.ones((1, len(own)), jnp.int32), jnp.arange(len(own))[None]
            assert len(own) == prefix + sizes[branch - 1]
            np.testing.assert_allclose(found[:, own], logits_of(config, params, *row), atol=1e-5)
            np.testing.assert_allclose(scalars[:, own], compiled(ScalarModel(config))(scalar, *row), atol=1e-5)


@pytest.mark.parametrize("more", ["branches", "deterministic"])
def test_a_cache_knows_no_branches_and_no_dropout(more):
    row, params = batch([[1] * 4]), parameters(LanguageModel(CONFIG))
    given = {"branches": row[1]} if more == "branches" else {"deterministic": False}
    with pytest.raises(ValueError, match="expected a cache alone, found branches or dropout with it"):
        LanguageModel(CONFIG).apply({"params": params}, *row, init_cache(CONFIG, 1, 4), **given)


@pytest.mark.parametrize("config", [CONFIG, BANDED], ids=["dense", "banded"])
@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize("slots", [10, 13])
def test_prefill_and_decode_equal_the_full_forward_pass(config, slots, by_layer):
    config = dataclasses.replace(config, cache_by_layer=by_layer)
    segments = np.ones((3, 10), np.int32)
    segments[1, :2], segments[2, :4] = 0, 0
    tokens, segments, positions = batch(segments)
    params = parameters(LanguageModel(config))
    full = logits_of(config, params, tokens, segments, positions)
    step = compiled(LanguageModel(config))
    cache, found = init_cache(config, 3, slots), []
    for start, stop in ((0, 5), (5, 7), (7, 8), (8, 9), (9, 10)):  # prompts, two at once, one by one
        piece, cache = step(params, *(a[:, start:stop] for a in (tokens, segments, positions)), cache)
        found.append(piece)
        assert int(cache.length) == stop
    real = np.asarray(segments, bool)
    np.testing.assert_allclose(jnp.concatenate(found, 1)[real], full[real], atol=1e-5)
    np.testing.assert_array_equal(cache.segments[:, :10], segments)


@pytest.mark.parametrize("by_layer", [True, False])
def test_parameters_for_decoding_change_no_logits(by_layer):
    """Kernels that are rounded are copies, and lie transposed; others are left as they are."""
    config = dataclasses.replace(CONFIG, factors="bfloat16", cache_by_layer=by_layer)
    model, plain, rows = LanguageModel(config), LanguageModel(CONFIG), batch([[1] * 7])
    params = parameters(model)
    prepared = model.decoding_params(params)
    found, _ = compiled(model)(prepared, *rows, init_cache(config, 1, 7))
    expected, _ = compiled(model)(params, *rows, init_cache(config, 1, 7))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inner = prepared["trunk"]["blocks"]["feed_forward"]["in"]
    assert inner["transposed"].shape == (3, 20, 12) and inner["transposed"].dtype == jnp.bfloat16
    assert jax.tree.all(jax.tree.map(lambda one, other: one is other, plain.decoding_params(params), params))


def test_logits_at_selected_positions_are_those_of_the_whole():
    rows = batch([[1] * 7, [0, 0] + [1] * 5])
    model, params = LanguageModel(CONFIG), parameters(LanguageModel(CONFIG))
    hidden, _ = compiled(model, "hidden")(params, *rows)
    last = model.apply({"params": params}, hidden[:, -3:], method="unembed")
    np.testing.assert_allclose(last, logits_of(CONFIG, params, *rows)[:, -3:], atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, BANDED], ids=["dense", "banded"])
def test_scan_equals_unrolled_equals_a_loop_over_blocks(config):
    tokens, segments, positions = batch([[1] * 8])
    model, params = LanguageModel(config), parameters(LanguageModel(config))
    scanned, _ = compiled(model, "hidden")(params, tokens, segments, positions)
    unrolled = LanguageModel(dataclasses.replace(config, unroll=config.num_layers))
    found, _ = compiled(unrolled, "hidden")(params, tokens, segments, positions)
    np.testing.assert_allclose(found, scanned, atol=1e-5)
    trunk = params["trunk"]
    x = trunk["token_embedding"][tokens] + trunk["position_embedding"][positions]
    dense = jnp.tril(jnp.ones((1, 8, 8), bool))
    banded = None if config.local_window is None else jnp.triu(dense, -config.local_window + 1)
    visible = Visible(dense, banded)
    run = jax.jit(lambda block, x, layer: Block(config).apply(block, (x, None, None), layer, 0, visible, True))
    for layer in range(config.num_layers):
        block = {"params": jax.tree.map(lambda leaf, layer=layer: leaf[layer], trunk["blocks"])}
        (x, _, _), _ = run(block, x, layer)
    mean, std = x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = (x - mean) / std * trunk["final_norm"]["scale"] + trunk["final_norm"]["bias"]
    np.testing.assert_allclose(scanned, expected, atol=1e-5)


@functools.cache
def gradients_of(config):
    rows = batch([[1] * 6 + [0] * 2, [0] * 3 + [2] * 5])
    model = compiled(LanguageModel(config), deterministic=False)

    def loss(params):
        logits, _ = model(params, *rows, key=jax.random.key(5))
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0] * (rows[1] > 0))

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("change", [{"remat": True}, {"remat": True, "unroll": 2}])
def test_rematerialising_and_unrolling_change_no_gradient(change):
    config = dataclasses.replace(BANDED, dropout=0.3)
    params = parameters(LanguageModel(config))
    expected, found = (gradients_of(c)(params) for c in (config, dataclasses.replace(config, **change)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    kernels = [layer["kernel"] for layer in expected["trunk"]["blocks"]["attention"].values()]
    assert all(float(jnp.abs(kernel).max()) > 1e-4 for kernel in kernels)


def test_dropout_is_off_or_a_function_of_its_key():
    rows, params = batch([[1] * 6]), parameters(LanguageModel(CONFIG))
    model = LanguageModel(dataclasses.replace(CONFIG, dropout=0.3))

    def noisy(seed):
        return compiled(model, deterministic=False)(params, *rows, key=jax.random.key(seed))[0]

    plain = logits_of(CONFIG, params, *rows)
    np.testing.assert_array_equal(compiled(model)(params, *rows)[0], plain)
    np.testing.assert_array_equal(noisy(0), noisy(0))
    assert float(jnp.abs(noisy(0) - noisy(1)).max()) > 1e-2
    assert float(jnp.abs(noisy(0) - plain).max()) > 1e-2


def test_bfloat16_computes_near_float32_and_keeps_its_parameters():
    half = dataclasses.replace(BANDED, dtype="bfloat16")
    rows, model = batch([[1] * 8]), LanguageModel(half)
    params = jax.jit(model.init)(jax.random.key(0), *rows)["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    logits, cache = compiled(model)(params, *rows, init_cache(half, 1, 8))
    assert logits.dtype == jnp.float32 and {keys.dtype for keys in cache.keys} == {jnp.dtype("bfloat16")}
    hidden, _ = jax.eval_shape(compiled(model, "hidden"), params, *rows)
    assert hidden.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(logits - logits_of(BANDED, params, *rows)).max()) < 0.02
    scalar = ScalarModel(half)
    values = jax.eval_shape(compiled(scalar), parameters(scalar), *rows)
    assert values.dtype == jnp.float32
    slopes = jax.eval_shape(gradients_of(half), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(slopes)} == {"float32"}


def test_the_embedding_is_tied():
    rows, params = batch([[1] * 4]), parameters(LanguageModel(CONFIG))
    assert set(params) == {"trunk"}
    unused = next(token for token in range(CONFIG.vocab_size) if token not in np.asarray(rows[0]))
    embedding = params["trunk"]["token_embedding"]
    changed = {"trunk": {**params["trunk"], "token_embedding": embedding.at[unused].multiply(2.0)}}
    before, after = logits_of(CONFIG, params, *rows), logits_of(CONFIG, changed, *rows)
    np.testing.assert_allclose(after[..., unused], 2 * before[..., unused], rtol=1e-4)
    np.testing.assert_array_equal(np.delete(after, unused, -1), np.delete(before, unused, -1))


def test_initial_scales():
    config = dataclasses.replace(CONFIG, d_model=256, num_heads=4, d_head=64, d_ff=512, vocab_size=500, max_length=200)
    rows = batch([[1, 1]])
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
    rows, model = batch([[1] * 5]), ScalarModel(CONFIG)
    params = parameters(model)
    shifted = {**params, "head": {**params["head"], "bias": params["head"]["bias"] + 2.5}}
    before, after = (compiled(model)(p, *rows) for p in (params, shifted))
    assert before.shape == (1, 5)
    np.testing.assert_allclose(after, before + 2.5, rtol=1e-5)


def test_the_model_equals_numpy_in_float64():
    rows = batch([[1] * 5 + [2] * 3])
    params = parameters(LanguageModel(BANDED))
    trunk = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["trunk"])
    tokens, segments, positions = (np.asarray(a)[0] for a in rows)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    x = trunk["token_embedding"][tokens] + trunk["position_embedding"][positions]
    for layer in range(BANDED.num_layers):
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
    np.testing.assert_allclose(logits_of(BANDED, params, *rows)[0], expected, atol=2e-5)
    with jax.enable_x64(True):
        exact = dataclasses.replace(BANDED, dtype="float64", param_dtype="float64")
        found = np.asarray(logits_of(exact, {"trunk": trunk}, *rows)[0])
    assert found.dtype == np.float64
    print(f"largest difference {np.abs(found - expected).max():.1e}, largest value {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_graft_replaces_the_trunk_by_a_copy_and_keeps_the_head():
    language, scalar = parameters(LanguageModel(CONFIG), 1), parameters(ScalarModel(CONFIG), 2)
    grafted = graft_trunk(scalar, language)
    jax.tree.map(np.testing.assert_array_equal, grafted, {"trunk": language["trunk"], "head": scalar["head"]})
    jax.tree.map(lambda leaf: leaf.delete(), language)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grafted))


def test_graft_names_both_sides_of_what_differs():
    scalar = parameters(ScalarModel(CONFIG))
    wide = parameters(LanguageModel(dataclasses.replace(CONFIG, vocab_size=23)))
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
def test_impossible_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
