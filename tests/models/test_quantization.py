"""Weights in int8: their error, the function that a model computes with them, and what a sampler reads."""

import dataclasses
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.extend.core import jaxprs_in_params

from instructjax.batch import PromptBatch
from instructjax.models import lora, matmul
from instructjax.models.cache import init_cache
from instructjax.models.lora import LoraConfig, WithBase
from instructjax.models.quantization import quantize
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import sampling
from tests import decoders, fakes

WEIGHTS = st.one_of(st.just(0.0), st.floats(2.0**-99, 2.0**99, width=32), st.floats(-(2.0**99), -(2.0**-99), width=32))


def dequantized(quantized):
    return np.asarray(quantized.values, np.float64) * np.asarray(quantized.scale, np.float64)[..., None]


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (2, 3, 5), elements=WEIGHTS))
def test_the_error_of_a_weight_is_at_most_half_of_its_scale(matrix):
    found = quantize(jnp.asarray(matrix))
    np.testing.assert_allclose(found.scale, np.abs(matrix).max(-1) / 127, rtol=1e-6)
    assert (np.abs(matrix - dequantized(found)) <= (0.5 + 1e-4) * np.asarray(found.scale)[..., None]).all()
    largest = np.abs(np.asarray(found.values, int)).max(-1)
    np.testing.assert_array_equal(largest, np.where(np.abs(matrix).max(-1) > 0, 127, 0))
    swapped = quantize(jnp.asarray(matrix).swapaxes(-1, -2), inputs=-2)
    jax.tree.map(np.testing.assert_array_equal, swapped, found)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_not_hidden(wrong):
    found = quantize(jnp.asarray([[1.0, wrong], [1.0, 2.0]]))
    assert np.isfinite(found.scale).tolist() == [False, True]


NUMBERS = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32), st.floats(-(2.0**20), -(2.0**-20), width=32))


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.float32, (2, 3, 4), elements=NUMBERS),
    hnp.arrays(np.float32, (5, 4), elements=NUMBERS),
)
def test_products_of_integers_are_those_of_what_they_stand_for(x, matrix):
    rows, outputs = (dequantized(quantize(jnp.asarray(array))) for array in (x, matrix))
    given = "btd,fd->btf", jnp.asarray(x), quantize(jnp.asarray(matrix)), "int8", "float32"
    found = matmul.einsum_of_quantized(*given)
    atol = 1e-6 * float(np.abs(x).max()) * float(np.abs(matrix).max()) * 4
    np.testing.assert_allclose(found, np.einsum("btd,fd->btf", rows, outputs), rtol=1e-6, atol=atol)


def test_rows_are_rounded_each_by_its_own_scale():
    x, identity = jnp.asarray([[127.0, 1.4, 0.0], [0.0127, 0.0064, 0.0], [0.0, 0.0, 0.0]]), quantize(jnp.eye(3))
    found = matmul.einsum_of_quantized("td,fd->tf", x, identity, "int8", "float32")
    np.testing.assert_allclose(found, [[127, 1, 0], [0.0127, 0.0064, 0], [0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_is_not_hidden(wrong):
    x, matrix = jnp.asarray([[1.0, wrong], [1.0, 2.0]]), quantize(jnp.ones((3, 2)))
    found = matmul.einsum_of_quantized("td,fd->tf", x, matrix, "int8", "float32")
    assert np.isfinite(found).tolist() == [[False] * 3, [True] * 3]


def products(jaxpr):
    """Yields the equations of all products of two arrays, inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_every_product_with_int8_weights_is_one_of_integers():
    config = dataclasses.replace(fakes.DECODER, decoding_dtype="int8xint8", cache_by_layer=False)
    model = LanguageModel(config)
    prepared, rows = model.decoding_params(fakes.params(model)), fakes.rows_of([[1] * 7])
    traced = jax.make_jaxpr(lambda params, cache: model.apply({"params": params}, *rows, cache))(
        prepared, init_cache(config, 1, 7)
    )
    integers = [
        [var.aval.dtype.name for var in (*equation.invars, *equation.outvars)]
        for equation in products(traced.jaxpr)
        if "int8" in {var.aval.dtype.name for var in equation.invars}
    ]
    assert integers == [["int8", "int8", "int32"]] * (len(lora.kernels(config)) + 1)


def as_floats(prepared):
    """Returns the kernels that int8 stands for, and the unembedding."""
    flat = flax.traverse_util.flatten_dict(prepared)
    unembedding = jnp.asarray(dequantized(flat.pop(("rounded",))), jnp.float32)
    floats = {
        (*path[:-1], "kernel") if path[-1] == "transposed" else path: leaf
        if isinstance(leaf, jax.Array)
        else jnp.asarray(dequantized(leaf).swapaxes(-1, -2), jnp.float32)
        for path, leaf in flat.items()
    }
    return flax.traverse_util.unflatten_dict(floats), unembedding


@pytest.mark.parametrize(
    "config",
    [
        fakes.DECODER,
        pytest.param(dataclasses.replace(decoders.LLAMA, cache_by_layer=True), marks=pytest.mark.slow),
        pytest.param(decoders.GEMMA, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(fakes.DECODER, tied=False, dtype="bfloat16"), marks=pytest.mark.slow),
    ],
    ids=["gpt", "llama", "gemma", "bfloat16"],
)
def test_decoding_computes_the_function_of_the_weights_that_int8_stands_for(config):
    model = LanguageModel(dataclasses.replace(config, decoding_dtype="int8"))
    params, rows = fakes.params(model), fakes.rows_of([[1] * 7])
    prepared = model.decoding_params(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(prepared["rounded"])} == {"int8", "float32"}
    found, _ = fakes.compiled(model)(prepared, *rows, init_cache(config, 1, 7))
    floats, unembedding = as_floats(prepared)
    hidden, _ = fakes.compiled(model, "hidden")(floats, *rows, init_cache(config, 1, 7))
    if config.tied:  # the token embedding itself is not rounded
        floats["trunk"]["token_embedding"] = unembedding
    else:
        floats["unembedding"] = unembedding
    expected = model.apply({"params": floats}, hidden, method="unembed")
    tolerance = 0.05 if config.dtype == "bfloat16" else 1e-4
    np.testing.assert_allclose(found, expected, atol=tolerance)
    exact, _ = fakes.compiled(model)(params, *rows, init_cache(config, 1, 7))
    assert np.abs(found - exact).max() > tolerance / 50  # int8 is another function, so this test can fail


@pytest.mark.slow
def test_adapters_are_merged_before_weights_are_quantized():
    config = dataclasses.replace(fakes.DECODER, decoding_dtype="int8")
    model, params = LanguageModel(config), fakes.params(LanguageModel(config))
    adapters = lora.init(jax.random.key(1), LoraConfig(2, 1.0, 0.0, ("*",)), config)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    found = WithBase(model, params).decoding_params(adapters)
    merged = lora.merge(lora.attach(params, adapters), config.lora_alpha)
    jax.tree.map(np.testing.assert_array_equal, found, model.decoding_params(merged))
    same = jax.tree.map(lambda one, other: bool((one == other).all()), found, model.decoding_params(params))
    assert not same["trunk"]["blocks"]["attention"]["query"]["transposed"].scale


def sample(model, params, prompts):
    keys, ends = sampling.row_keys(jax.random.key(0), 4), {"max_response": 6, "eos_id": -1, "pad_id": 0}
    return sampling.sample(model, params, prompts, keys, sampling.categorical(), **ends)[0]


@pytest.mark.parametrize(
    ("by_layer", "dtype"),
    [(True, "int8"), pytest.param(False, "int8", marks=pytest.mark.slow), (True, "int8xint8")],
)
def test_the_loop_over_tokens_reads_int8(by_layer, dtype):
    """XLA could also convert all weights before the loop, which would then read float32."""
    # No other array has the shape of a kernel.
    config = dataclasses.replace(fakes.DECODER, cache_by_layer=by_layer, tied=False, max_length=17)
    model = LanguageModel(dataclasses.replace(config, decoding_dtype=dtype))
    ones = jnp.ones((4, 3), jnp.int32)
    program = jax.jit(lambda params, prompts: sample(model, params, prompts))
    compiled = program.lower(fakes.params(model), PromptBatch(ones, ones)).compile().as_text()
    loops = [line for line in compiled.splitlines() if re.search(r" = \(.*\) while\(", line)]
    loop = max(loops, key=lambda line: line.count("s8["))
    kernels = {f"{outputs},{inputs}" for inputs, outputs in lora.kernels(config).values()}
    assert kernels <= set(re.findall(r"s8\[3,(\d+,\d+)\]", loop)) and "s8[19,12]" in loop
    assert not kernels & set(re.findall(r"\b(?!s8\b)[a-z]+\d+\[(?:3,)?(\d+,\d+)\]", loop))
