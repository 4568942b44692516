"""Mean losses and their gradients, of tiny networks in float64: what changes nothing changes no more than 1e-12."""

import dataclasses
import functools

import jax
import numpy as np

from instructjax import losses
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.training.step import summed_gradient
from tests import tiny_models

LAYERS = [{"unroll": 2}, {"remat": True}]  # changes of a config that change no result
TOLERANCE = 1e-12  # of the largest gradient
PAD = 0
TEXTS = [np.random.default_rng(seed).integers(2, 16, size=size) for seed, size in enumerate((9, 4, 6, 2))]

with jax.enable_x64(True):
    CONFIG = dataclasses.replace(tiny_models.CONFIG, dtype="float64", param_dtype="float64")
    POLICY, SCALAR = tiny_models.params(LanguageModel(CONFIG)), tiny_models.params(ScalarModel(CONFIG), seed=1)


def changed(**change):
    """The config with a change."""
    with jax.enable_x64(True):
        return dataclasses.replace(CONFIG, **change)


@functools.cache
def compiled(loss, microbatches):
    """One program for all batches of a shape; XLA's optimisations would double the time of these tests."""
    program = functools.partial(summed_gradient, loss, microbatches=microbatches)
    return jax.jit(program, compiler_options={"xla_backend_optimization_level": 0})


def sums(loss, params, batch, microbatches=1):
    """((gradient, weight), (loss, weight)), nothing divided yet."""
    with jax.enable_x64(True):
        pair, metrics = compiled(loss, microbatches)(params, batch, jax.random.key(0))
    loss = metrics["loss"]
    return pair, (loss.total, loss.weight)


def mean(loss, params, batch, microbatches=1):
    """(gradient of the mean loss, the mean loss)."""
    return divided(sums(loss, params, batch, microbatches))


def divided(pairs):
    with jax.enable_x64(True):
        return [losses.mean(*pair) for pair in pairs]


def assert_same(found, expected):
    """Every number agrees to 1e-12 of the largest; pytest -s prints how far they are apart."""
    pairs = [
        (jax.tree_util.keystr(path), np.asarray(x), np.asarray(y))
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    ]
    assert {array.dtype.name for _, *arrays in pairs for array in arrays} == {"float64"}
    largest = max(np.abs(y).max() for _, _, y in pairs)
    print(f"largest difference {max(np.abs(x - y).max() for _, x, y in pairs) / largest:.1e} of the largest", end=" ")
    for name, x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * largest, err_msg=name)
