"""Decoding with a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.cache import init_cache
from instructjax.models.transformer import LanguageModel
from tests import fakes


@pytest.mark.parametrize("more", ["branches", "deterministic"])
def test_a_cache_excludes_branches_and_dropout(more):
    row, params = fakes.rows_of([[1] * 4]), fakes.params(LanguageModel(fakes.DECODER))
    given = {"branches": row[1]} if more == "branches" else {"deterministic": False}
    with pytest.raises(ValueError, match="expected a cache alone, found branches or dropout with it"):
        LanguageModel(fakes.DECODER).apply({"params": params}, *row, init_cache(fakes.DECODER, 1, 4), **given)


@pytest.mark.parametrize(
    ("config", "slots", "by_layer"),
    [
        (fakes.DECODER, 10, True),
        (fakes.DECODER, 13, False),
        (fakes.BANDED_DECODER, 10, False),
        (fakes.BANDED_DECODER, 13, True),
    ],
)
def test_prefill_and_decode_equal_the_full_forward_pass(config, slots, by_layer):
    config = dataclasses.replace(config, cache_by_layer=by_layer)
    segments = np.ones((3, 10), np.int32)
    segments[1, :2], segments[2, :4] = 0, 0
    tokens, segments, positions = fakes.rows_of(segments)
    params = fakes.params(LanguageModel(config))
    full = fakes.logits_of(config, params, tokens, segments, positions)
    step = fakes.compiled(LanguageModel(config))
    cache, found = init_cache(config, 3, slots), []
    for start, stop in ((0, 5), (5, 7), (7, 8), (8, 9), (9, 10)):  # prompts, two at once, one by one
        piece, cache = step(params, *(a[:, start:stop] for a in (tokens, segments, positions)), cache)
        found.append(piece)
        assert int(cache.length) == stop
    real = np.asarray(segments, bool)
    np.testing.assert_allclose(jnp.concatenate(found, 1)[real], full[real], atol=1e-5)
    np.testing.assert_array_equal(cache.segments[:, :10], segments)


@pytest.mark.parametrize("by_layer", [True, False])
def test_decoding_parameters_do_not_change_logits(by_layer):
    """Rounded kernels are transposed copies; others are unchanged."""
    config = dataclasses.replace(fakes.DECODER, matmul_dtype="bfloat16", cache_by_layer=by_layer)
    model, plain, rows = LanguageModel(config), LanguageModel(fakes.DECODER), fakes.rows_of([[1] * 7])
    params = fakes.params(model)
    prepared = model.decoding_params(params)
    found, _ = fakes.compiled(model)(prepared, *rows, init_cache(config, 1, 7))
    expected, _ = fakes.compiled(model)(params, *rows, init_cache(config, 1, 7))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inner = prepared["trunk"]["blocks"]["feed_forward"]["in"]
    assert inner["transposed"].shape == (3, 20, 12) and inner["transposed"].dtype == jnp.bfloat16
    assert jax.tree.all(jax.tree.map(lambda one, other: one is other, plain.decoding_params(params), params))
