"""Logits in chunks give the values and gradients of all logits at once, without an array of their size."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from instructjax import losses
from instructjax.models import unembedding
from instructjax.models.transformer import LanguageModel, abstract_params
from tests import fakes

B, T, V = 3, 10, fakes.CONFIG.vocab_size
PARAMS = fakes.params(LanguageModel(fakes.CONFIG), noise=0.5)


def read(logits, tokens):
    return losses.log_probs(logits, tokens), losses.entropy(logits)


def in_chunks(size, params, hidden, tokens, weights):
    model = LanguageModel(dataclasses.replace(fakes.CONFIG, logits_chunk=B * size))
    return unembedding.read_logits(model, params, hidden, tokens, weights, read)


def at_once(params, hidden, tokens, weights):
    logits = LanguageModel(fakes.CONFIG).apply({"params": params}, hidden, method="unembed")
    return [jnp.where(weights > 0, x, 0) for x in read(logits, tokens)]


@functools.cache
def differentiated(function):
    """Compiles a function of the read values, their weighted sum and its gradient."""

    def total(params, hidden, tokens, weights, factors):
        found = function(params, hidden, tokens, weights)
        return sum((x * factor).sum() for x, factor in zip(found, factors, strict=True)), found

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


CHUNKS = {size: functools.partial(in_chunks, size) for size in (1, 4, T, 99)}


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float32, (B, T), elements=st.sampled_from([0.0, 0.5, 1.0])), st.integers(0, 99))
@pytest.mark.parametrize("size", CHUNKS)
def test_values_and_gradients_are_those_of_all_logits(size, weights, seed):
    rng = np.random.default_rng(seed)
    hidden, factors = rng.normal(size=(B, T, 32)).astype(np.float32), rng.normal(size=(2, B, T)).astype(np.float32)
    arguments = PARAMS, hidden, rng.integers(0, V, (B, T)), weights, factors
    found, expected = (differentiated(function)(*arguments) for function in (CHUNKS[size], at_once))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, list(found[0][1]), expected[0][1])
    jax.tree.map(close, found[1], expected[1])


@settings(deadline=None)
@given(hnp.arrays(np.float32, (B, T), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_columns_with_a_weight_move_to_the_left_in_order(weights):
    places = np.arange(B * T).reshape(B, T)
    wide = places[..., None] * np.array([1, 10])
    moved, *arrays = unembedding.weighted_first(weights, places, wide)
    for row in range(B):
        kept = np.flatnonzero(weights[row])
        np.testing.assert_array_equal(moved[row], np.pad(weights[row, kept], (0, T - len(kept))))
        np.testing.assert_array_equal(arrays[0][row, : len(kept)], places[row, kept])
    np.testing.assert_array_equal(arrays[1], arrays[0][..., None] * np.array([1, 10]))


def sizes(jaxpr):
    """Yields the number of elements of every array in a program, including the programs inside it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize("size", [1, 4])
def test_no_array_has_the_size_of_all_logits(size):
    """The vocabulary is larger than all other sizes."""
    config = dataclasses.replace(fakes.CONFIG, vocab_size=10_007, logits_chunk=B * size - 1)
    model = LanguageModel(config)
    params = abstract_params(model)
    hidden, tokens = jax.ShapeDtypeStruct((B, T, 32), jnp.float32), jax.ShapeDtypeStruct((B, T), jnp.int32)

    def total(params, hidden, tokens, weights):
        return sum(x.sum() for x in unembedding.read_logits(model, params, hidden, tokens, weights, read))

    program = jax.make_jaxpr(jax.grad(total, (0, 1)))(params, hidden, tokens, tokens)
    parameters = 10_007 * 32
    found = {count for count in sizes(program.jaxpr) if count >= 10_007} - {parameters}
    assert max(found) == B * size * 10_007
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(params, hidden, tokens, tokens).compile().as_text()
    assert f"{B},{T},10007" not in compiled and f"{B * T},10007" not in compiled


def test_columns_without_a_weight_are_not_computed():
    """If they were computed, they would be NaN and counted."""
    calls = []

    def count(logits, tokens):
        jax.debug.callback(lambda: calls.append(logits.shape))
        return logits[..., 0]

    model = LanguageModel(dataclasses.replace(fakes.CONFIG, logits_chunk=2 * B))
    weights = np.zeros((B, T), np.float32)
    weights[1, 4], weights[2, 5] = 1.0, 1.0
    hidden = jnp.full((B, T, 32), jnp.nan).at[:, 4:6].set(1.0)
    found = jax.jit(lambda w: unembedding.read_logits(model, PARAMS, hidden, jnp.zeros((B, T), int), w, count))(weights)
    jax.effects_barrier()
    assert calls == [(B, 2, V)]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_copy_that_is_rounded_once_changes_no_bit_and_has_no_gradient_of_its_own(tied):
    model = LanguageModel(dataclasses.replace(fakes.CONFIG, matmul_dtype="bfloat16", tied=tied))
    params = fakes.params(model, noise=0.5)
    hidden = jax.random.normal(jax.random.key(0), (B, T, fakes.CONFIG.d_model))

    def total(prepare, params, hidden):
        logits = model.apply({"params": prepare(params)}, hidden, method="unembed")
        return jnp.sum(logits**2), logits

    plain, rounded = (
        jax.jit(jax.value_and_grad(functools.partial(total, prepare), (0, 1), has_aux=True))(params, hidden)
        for prepare in (lambda params: params, model.unembedding_params)
    )
    jax.tree.map(np.testing.assert_array_equal, rounded, plain)
    found = model.unembedding_params(params)["rounded"]
    assert found.dtype == jnp.bfloat16
    matrix = plain[1][0]["trunk"]["token_embedding"] if tied else plain[1][0]["unembedding"]
    assert matrix.dtype == jnp.float32 and float(jnp.abs(matrix).max()) > 0.1
