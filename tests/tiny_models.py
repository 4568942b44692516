"""Models that compile in a second, with weights large enough that nothing is hidden by a zero or a one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel

CONFIG = TransformerConfig(vocab_size=16, num_layers=2, d_model=32, num_heads=2, d_head=16, d_ff=64, max_length=24)
BANDED = dataclasses.replace(CONFIG, local_window=3)


def params(model, seed=0, noise=0.3):
    """Random weights, without compiling the model's own; the more noise, the surer the predictions."""
    row = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(seed), row, row, row)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + noise * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def language_model(config=CONFIG, **kwargs):
    """(model, weights)."""
    model = LanguageModel(config)
    return model, params(model, **kwargs)


def scalar_model(config=CONFIG, **kwargs):
    """(model, weights)."""
    model = ScalarModel(config)
    return model, params(model, **kwargs)
