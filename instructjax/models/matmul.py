"""Matmuls with rounded operands and unrounded sums, forward and backward."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from instructjax.models.quantization import Quantized, quantize
from instructjax.typing import Array

FEW = 64  # on a CPU, swap the arrays if the first has at most this many rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], matmul_dtype: DTypeLike, dtype: DTypeLike
) -> Float[Array, "..."]:
    """Computes `jnp.einsum` of two arrays rounded to one dtype, with sums in at least float32.

    The scheme is that of Micikevicius et al. (2018). Gradients are products of factors rounded in the same way. Each
    sum is rounded once, to the dtype of its array, so gradients of float32 parameters are never rounded to bfloat16.
    `jnp.einsum` would multiply a float32 array by a bfloat16 array, which is slow everywhere.

    Args:
      spec: of two arrays that share one letter that is not in the result, such as "td,df->tf". Both may have the same
        batch letters in front, such as "btd,bdf->btf". The first may have several letters of its own, such as
        "btd,df->btf".
      x: the first factor.
      y: the second factor.
      matmul_dtype: the dtype to which x, y and the cotangent are rounded.
      dtype: of the result.
    """
    return _product(spec, x.astype(matmul_dtype), y.astype(matmul_dtype)).astype(dtype)


def _forward(
    spec: str, x: Array, y: Array, matmul_dtype: DTypeLike, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return einsum(spec, x, y, matmul_dtype, dtype), (x, y)


def _backward(
    spec: str,
    matmul_dtype: DTypeLike,
    dtype: DTypeLike,
    residuals: tuple[Array, Array],
    cotangent: Array,
    dtype_of_y: DTypeLike | None = None,
) -> tuple[Array, Array]:
    del dtype
    x, y = residuals
    one, other, out = _terms(spec)
    cotangent = cotangent.astype(matmul_dtype)
    of_x = _product(f"{out},{other}->{one}", cotangent, y.astype(matmul_dtype))
    of_y = _product(f"{one},{out}->{other}", x.astype(matmul_dtype), cotangent)
    return of_x.astype(x.dtype), of_y.astype(y.dtype if dtype_of_y is None else dtype_of_y)


einsum.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def einsum_of_rounded(
    spec: str, x: Float[Array, "..."], rounded: Float[Array, "..."], y: Float[Array, "..."], dtype: DTypeLike
) -> Float[Array, "..."]:
    """Computes `einsum(spec, x, y, rounded.dtype, dtype)` from a copy of y that is already rounded.

    So a loop of products with y rounds it once, and still adds up its gradient in the dtype of y.

    Args:
      spec: see `einsum`.
      x: the first factor.
      rounded: y in the dtype to which x and the cotangent are rounded. Its gradient is 0.
      y: receives the gradient of the second factor; its values are not read.
      dtype: of the result.
    """
    del y
    return _product(spec, x.astype(rounded.dtype), rounded).astype(dtype)


def _forward_of_rounded(
    spec: str, x: Array, rounded: Array, y: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array, Array]]:
    return einsum_of_rounded(spec, x, rounded, y, dtype), (x, rounded, jnp.zeros((), y.dtype))


def _backward_of_rounded(
    spec: str, dtype: DTypeLike, residuals: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, Array]:
    x, rounded, zero = residuals
    of_x, of_y = _backward(spec, rounded.dtype, dtype, (x, rounded), cotangent, zero.dtype)
    return of_x, jnp.zeros_like(rounded), of_y


einsum_of_rounded.defvjp(_forward_of_rounded, _backward_of_rounded)


def einsum_of_quantized(
    spec: str, x: Float[Array, "..."], y: Quantized, matmul_dtype: DTypeLike, dtype: DTypeLike
) -> Float[Array, "..."]:
    """Computes `einsum` with a matrix in int8: sums of integers times x, then times the scale of each output.

    If `matmul_dtype` is "int8", x is quantized too, with a scale for each row, and the sums in int32 are exact. This is
    the vector-wise quantization of Dettmers et al. (2022) without their float16 product for outliers, so large models
    lose accuracy. Decoding needs no gradient, so none is defined.

    Args:
      spec: see `einsum`; the axis of outputs comes first in y and last in the result, as in "td,fd->tf".
      x: the first factor.
      y: the second factor, [outputs, inputs].
      matmul_dtype: the dtype to which x is rounded. The integers of y are exact in it.
      dtype: of the result.
    """
    if jnp.dtype(matmul_dtype) == jnp.int8:  # no conversion that XLA could move out of a loop
        rows = quantize(x)
        total = jnp.einsum(spec, rows.values, y.values, preferred_element_type=jnp.int32)
        return (total.astype(jnp.float32) * rows.scale[..., None] * y.scale).astype(dtype)
    # The barrier ties the conversion to x. Without it, XLA converts all matrices before a loop over tokens, which then
    # reads the converted ones.
    x, values = jax.lax.optimization_barrier((x, y.values))
    return (_product(spec, x.astype(matmul_dtype), values.astype(matmul_dtype)) * y.scale).astype(dtype)


def _product(spec: str, x: Array, y: Array) -> Array:
    """Computes the einsum of two arrays of one dtype, in at least float32."""
    one, other, _ = _terms(spec)
    if x.ndim == y.ndim == 2 and x.shape[0] <= FEW and one[-1] == other[-1]:
        on_cpu = _product_of_few_rows
    elif x.dtype == jnp.bfloat16:
        on_cpu = _product_on_cpu
    else:
        return _sums(spec, x, y)
    return jax.lax.platform_dependent(x, y, cpu=functools.partial(on_cpu, spec), default=functools.partial(_sums, spec))


def _sums(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _product_of_few_rows(spec: str, x: Array, y: Array) -> Array:
    # CPU kernels repack the second array for each product. In decoding, that would be the weights.
    one, other, out = _terms(spec)
    return _moved_last(_sums(f"{other},{one}->{out[::-1]}", y, x), 0)


def _product_on_cpu(spec: str, x: Array, y: Array) -> Array:
    # On a CPU, XLA uses YNNPACK, and so the processor's matrix units, for bfloat16 products whose first array has the
    # summed axis last. It converts all others to float32, including those for gradients of weights.
    one, other, out = _terms(spec)
    if len(set(one) - set(other)) > 1 or len(set(one) - set(out)) > 1:
        return _product_of_merged_letters(spec, x, y)
    (summed,) = set(one) - set(out)
    if out.index(_free(one, other)) > out.index(_free(other, one)):
        x, y, one, other = y, x, other, one
    if one[-1] == summed:
        return _sums(f"{one},{other}->{out}", x, y)
    if x.size <= y.size:
        return _sums(f"{one.replace(summed, '')}{summed},{other}->{out}", _moved_last(x, one.index(summed)), y)
    # Move the axis of the smaller array; its letter then comes first in the result.
    letter = _free(one, other)
    swapped = out.replace(letter, "") + letter
    y, other = _moved_last(y, other.index(summed)), other.replace(summed, "") + summed
    return _moved_last(_sums(f"{other},{one}->{swapped}", y, x), len(out) - 2)


def _product_of_merged_letters(spec: str, x: Array, y: Array) -> Array:
    """Merges neighboring letters of the first array that the product treats alike, such as "bt" in "btd,df->btf"."""
    one, other, out = _terms(spec)
    free, summed = ("".join(letter for letter in one if letter not in term) for term in (other, out))
    letters, kept = (free, free[-1]) if len(free) > 1 else (summed, summed[-1])
    sizes = {**dict(zip(one, x.shape, strict=True)), **dict(zip(other, y.shape, strict=True))}

    def merged(term: str, array: Array) -> Array:
        if letters not in term:
            return array
        before, after = (tuple(sizes[letter] for letter in part) for part in term.split(letters))
        return array.reshape(*before, -1, *after)

    product = _product_on_cpu(spec.replace(letters, kept), merged(one, x), merged(other, y))
    return product.reshape([sizes[letter] for letter in out])


def _terms(spec: str) -> tuple[str, str, str]:
    terms, out = spec.split("->")
    one, other = terms.split(",")
    return one, other, out


def _free(term: str, other: str) -> str:
    """Returns the letter of a term that the other term does not have."""
    (letter,) = set(term) - set(other)
    return letter


def _moved_last(x: Array, axis: int) -> Array:
    """Computes `moveaxis(x, axis, -1)` in a form that XLA does not merge into the product."""
    size = x.shape[axis]
    inner = math.gcd(size, 8)
    cut = x.reshape(*x.shape[:axis], size // inner, inner, *x.shape[axis + 1 :])
    moved = jnp.moveaxis(cut, (axis, axis + 1), (-2, -1))
    return moved.reshape(*moved.shape[:-2], size)
