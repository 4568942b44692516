"""A decoder of a few layers, with large weights and rows of several segments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel

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
