"""Models that compile in a second, with weights large enough that zeros and ones hide no errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params

CONFIG = TransformerConfig(vocab_size=16, num_layers=2, d_model=32, num_heads=2, d_head=16, d_ff=64, max_length=24)
BANDED = dataclasses.replace(CONFIG, local_window=3)


def params(model, seed=0, noise=0.3):
    """Draws random weights without compiling the model's `init`. More noise gives more confident predictions."""
    shapes = abstract_params(model)
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + noise * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def language_model(config=CONFIG, **kwargs):
    """Returns (model, weights)."""
    model = LanguageModel(config)
    return model, params(model, **kwargs)


def scalar_model(config=CONFIG, **kwargs):
    """Returns (model, weights)."""
    model = ScalarModel(config)
    return model, params(model, **kwargs)


# In float64.

LAYERS = [{"unroll": 2}, {"remat": "all"}]  # changes to a config that do not change results
LAYER_NAMES = ["unrolled", "rematerialized"]


def float64_config(**change):
    """Returns the config in float64, with changes."""
    with jax.enable_x64(True):
        return dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64", **change)


@functools.cache
def float64_params(kind, seed=0):
    """Returns weights of a kind of model, in float64."""
    with jax.enable_x64(True):
        return params(kind(float64_config()), seed)


# A decoder whose sizes all differ, and rows of several segments.

DECODER = TransformerConfig(
    vocab_size=19, num_layers=3, d_model=12, num_heads=2, d_head=8, d_ff=20, max_length=16, local_window=None
)
BANDED_DECODER = dataclasses.replace(DECODER, num_layers=2, local_window=3)


def positions_of(segments):
    segments = np.asarray(segments)
    positions = np.zeros_like(segments)
    for row, out in zip(segments, positions, strict=True):
        for name in set(row) - {0}:
            out[row == name] = np.arange((row == name).sum())
    return jnp.asarray(positions)


def rows_of(segments, seed=0):
    """Returns (tokens, segments, positions) of random tokens."""
    segments = jnp.asarray(segments, jnp.int32)
    tokens = jax.random.randint(jax.random.key(seed), segments.shape, 0, DECODER.vocab_size)
    return tokens, segments, positions_of(segments)


@functools.cache
def compiled(model, method="__call__", deterministic=True):
    """Compiles the model as a function of its weights, its inputs and a key for dropout."""

    def run(params, *inputs, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, *inputs, deterministic=deterministic, rngs=rngs, method=method)

    return jax.jit(run)


def logits_of(config, params, tokens, segments, positions):
    return compiled(LanguageModel(config))(params, tokens, segments, positions)[0]
