"""Compares products of rounded factors with NumPy in float64, forward and backward, for sizes down to 1."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.models import matmul

SPECS = ("td,df->tf", "td,fd->tf", "td,vd->tv", "bhtd,bhsd->bhts", "bhts,bhsd->bhtd", "btd,df->btf", "btd,fd->btf")


def rounded(x, dtype):
    return np.asarray(np.asarray(x, dtype), np.float64)


def terms(spec):
    return spec.replace("->", ",").split(",")


def arrays(spec, sizes, seed):
    """Returns both factors and a cotangent, in float32."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[sizes[letter] for letter in term]).astype(np.float32) for term in terms(spec)]


@functools.cache
def compiled(spec, factors):
    def pulled(x, y, cotangent):
        found, pull = jax.vjp(lambda x, y: matmul.einsum(spec, x, y, factors, jnp.float32), x, y)
        return found, *pull(cotangent)

    return jax.jit(pulled)


@pytest.mark.parametrize("factors", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None, max_examples=8)
@given(sizes=st.lists(st.sampled_from([1, 2, 3, 8, 16, 40, 72]), min_size=5, max_size=5), seed=st.integers(0, 99))
def test_products_and_gradients_are_sums_of_rounded_factors(spec, factors, sizes, seed):
    letters = dict(zip(sorted({*spec} - {*",->"}), sizes, strict=False))
    x, y, cotangent = arrays(spec, letters, seed)
    dtype = ml_dtypes.bfloat16 if factors == "bfloat16" else factors
    one, other, out = terms(spec)
    a, b, c = (rounded(array, dtype).astype(np.float64) for array in (x, y, cotangent))
    products = (spec, a, b), (f"{out},{other}->{one}", c, b), (f"{one},{out}->{other}", a, c)
    for found, (sums, left, right) in zip(compiled(spec, factors)(x, y, cotangent), products, strict=True):
        assert found.dtype == jnp.float32
        # The rounding of a sum in float32 grows with the size of its terms, not of the sum.
        error, size = np.abs(found - np.einsum(sums, left, right)), np.einsum(sums, np.abs(left), np.abs(right))
        assert np.all(error <= 1e-6 * size)


def test_each_gradient_has_the_dtype_of_its_array():
    x, y = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 3), jnp.float32)
    found, pull = jax.vjp(lambda x, y: matmul.einsum("td,df->tf", x, y, jnp.bfloat16, jnp.bfloat16), x, y)
    assert found.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in pull(found)] == [jnp.bfloat16, jnp.float32]


def test_a_gradient_of_float32_is_not_rounded():
    """257 = 256 + 1 is not a bfloat16, but it is a sum of bfloat16 products."""
    x, y = jnp.ones((257, 8), jnp.bfloat16), jnp.ones((8, 8), jnp.float32)
    _, pull = jax.vjp(lambda y: matmul.einsum("td,df->tf", x, y, jnp.bfloat16, jnp.bfloat16), y)
    np.testing.assert_array_equal(pull(jnp.ones((257, 8), jnp.bfloat16))[0], np.full((8, 8), 257.0))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes for a CPU")
@pytest.mark.parametrize("rows", [16, 256])
@pytest.mark.parametrize("spec", SPECS)
def test_no_factor_is_converted_back_to_float32_on_a_cpu(spec, rows):
    """None of the three products reads float32 arrays; the faster bfloat16 kernels do not accept them."""
    sizes = dict(zip(sorted({*spec} - {*",->"}), (64, 128, 256, 192, 16), strict=False))
    sizes["t"] = rows
    shapes = [jax.ShapeDtypeStruct([sizes[letter] for letter in term], jnp.float32) for term in terms(spec)]
    program = compiled(spec, "bfloat16").lower(*shapes).compile().as_text()
    assert program.count(" dot(") == 3
    widened = [line for line in program.splitlines() if " convert(" in line and "= f32" in line]
    assert not widened, widened
