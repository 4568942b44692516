"""Rotary positions: queries and keys are rotated by angles that grow with their positions (Su et al. 2021)."""

from __future__ import annotations

import math

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from instructjax.models import partitioning
from instructjax.models.config import TransformerConfig
from instructjax.typing import Array


class Rotation(flax.struct.PyTreeNode):
    """The cosines and sines of the angles of each token, in at least float32; r is half of `config.rotary_width`."""

    cosines: Float[Array, "B T r"]
    sines: Float[Array, "B T r"]


class Rotations(flax.struct.PyTreeNode):
    """The rotations of a pass.

    Attributes:
      dense: of layers that see all positions.
      local: of layers that see a window; None if they have the same.
    """

    dense: Rotation
    local: Rotation | None = None


def rotations(config: TransformerConfig, positions: Int[Array, "B T"]) -> Rotations | None:
    """Computes the rotations of tokens at these positions; None if the model's positions are learned."""
    if config.positions != "rotary":
        return None

    def rotation(frequencies: np.ndarray, amplitude: float) -> Rotation:
        dtype = jnp.promote_types(config.dtype, jnp.float32)
        angles = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
        return partitioning.constrain_rows(Rotation(jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude))

    scaled = rotation(_scaled(config, _frequencies(config, config.rotary_base)), config.rotary_amplitude)
    if config.rotary_local_base is None:
        return Rotations(scaled)
    return Rotations(scaled, rotation(_frequencies(config, config.rotary_local_base), 1.0))


def rotate(x: Float[Array, "B H T D"], rotation: Rotation) -> Float[Array, "B H T D"]:
    """Rotates each pair (x_i, x_{i + r}) of the first 2 r units of a head; the rest is unchanged."""
    half = rotation.cosines.shape[-1]
    cosines, sines = (a[:, None] for a in (rotation.cosines, rotation.sines))
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    turned = first * cosines - second * sines, second * cosines + first * sines
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


def _frequencies(config: TransformerConfig, base: float) -> np.ndarray:
    """Computes the angle per position of each pair, [r], in float64."""
    width = config.rotary_width
    return base ** (-np.arange(0, width, 2) / width)


def _scaled(config: TransformerConfig, frequencies: np.ndarray) -> np.ndarray:
    """Lowers the frequencies, those with few rotations in the original context by `rotary_factor`."""
    if not config.rotary_scaling:
        return frequencies
    low = frequencies / config.rotary_factor
    if config.rotary_scaling == "linear":
        return low
    assert config.rotary_original_length is not None
    rounds = config.rotary_original_length * frequencies / (2 * math.pi)
    if config.rotary_scaling == "llama3":
        kept = (rounds - config.rotary_slow) / (config.rotary_fast - config.rotary_slow)
    else:
        # YaRN's ramp is linear in the number of the pair, between the pairs with `rotary_fast` and `rotary_slow`
        # rotations, rounded outwards.
        count = len(frequencies)

        def pair(rotations: float) -> float:
            length = config.rotary_original_length or 0
            return count * math.log(length / (rotations * 2 * math.pi)) / math.log(config.rotary_base)

        first = max(math.floor(pair(config.rotary_fast)), 0)
        last = min(math.ceil(pair(config.rotary_slow)), 2 * count - 1)
        kept = 1 - (np.arange(count) - first) / (last - first or 0.001)
    kept = np.clip(kept, 0, 1)
    return kept * frequencies + (1 - kept) * low
