"""Quantizes weights to int8 for decoding, which mostly waits for weights: int8 has a quarter of float32's bytes.

With "int8xint8", activations are quantized too, row by row: see `matmul.einsum_of_quantized`.

W ≈ s q, with integers q and a scale s = max |W| / 127 for each output, the maximum over its inputs. There is no
calibration. Qwix quantizes in the same way (`qwix.quantize`), but its einsum decides the order of factors and the dtype
of sums, which matmul.py must decide; so these few lines replace a dependency.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Float, Int8

from instructjax.typing import Array

LARGEST = 127  # -128 is not used, so that W and -W have the same integers


class Quantized(flax.struct.PyTreeNode):
    """A matrix in int8, or several that are stacked.

    Attributes:
      values: q. They are exact in any floating-point dtype, because bfloat16 has 8 bits of precision.
      scale: s of each output, in float32.
    """

    values: Int8[Array, "*layers outputs inputs"]
    scale: Float[Array, "*layers outputs"]


def quantize(matrix: Float[Array, "*shape"], inputs: int = -1) -> Quantized:
    """Rounds each weight to the nearest multiple of its output's scale; the error is at most half of the scale.

    Args:
      matrix: W. If a weight is not finite, its scale is not finite either.
      inputs: the axis of inputs; the result has it last.
    """
    matrix = matrix.astype(jnp.float32)
    scale = jnp.max(jnp.abs(matrix), axis=inputs) / LARGEST
    divisor = jnp.where(scale > 0, scale, 1)  # the scale of an output whose weights are all 0 is 0
    values = jnp.round(matrix / jnp.expand_dims(divisor, inputs)).astype(jnp.int8)
    return Quantized(jnp.moveaxis(values, inputs, -1), scale)  # rounded before it is moved: fewer bytes
