"""Models that compile in a second, with weights large enough that nothing is hidden by a zero or a one."""

import dataclasses

import jax
import jax.numpy as jnp

from instructjax.models.transformer import LanguageModel, ScalarModel, TransformerConfig

CONFIG = TransformerConfig(vocab_size=16, num_layers=2, d_model=32, num_heads=2, d_head=16, d_ff=64, max_length=24)
BANDED = dataclasses.replace(CONFIG, local_window=3)


def params(model, seed=0, noise=0.3):
    """Initial weights with noise on each, biases and norms too; the more noise, the surer the predictions."""
    row = jnp.zeros((1, 2), jnp.int32)
    start = jax.jit(model.init)(jax.random.key(seed), row, row, row)["params"]
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + noise * jax.random.normal(key, x.shape, x.dtype) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)


def language_model(config=CONFIG, **kwargs):
    """(model, weights)."""
    model = LanguageModel(config)
    return model, params(model, **kwargs)


def scalar_model(config=CONFIG, **kwargs):
    """(model, weights)."""
    model = ScalarModel(config)
    return model, params(model, **kwargs)
