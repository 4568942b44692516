"""What the benchmark of weights in int8 counts and compares."""

import dataclasses

import jax
import numpy as np
import pytest
from benchmarks import int8

from instructjax.batch import PromptBatch
from instructjax.models import lora
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import sampling
from tests import fakes


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_the_matrices_that_are_read_for_each_token(tied):
    config = dataclasses.replace(fakes.DECODER, tied=tied)
    sides = lora.kernels(config).values()
    matrices = config.num_layers * sum(a * b for a, b in sides) + config.vocab_size * config.d_model
    scales = config.num_layers * sum(b for _, b in sides) + config.vocab_size
    params = fakes.params(LanguageModel(config))
    flat = jax.tree_util.tree_leaves_with_path(params["trunk"])
    vectors = sum(leaf.size for path, leaf in flat if path[-1].key in ("bias", "scale"))
    for dtype, expected in (("", 4 * matrices), ("int8", matrices + 4 * scales)):
        model = LanguageModel(dataclasses.replace(config, decoding_dtype=dtype))
        assert int8.decoded_bytes(model, params) == expected + 4 * vectors


@pytest.mark.slow
def test_the_divergence_is_0_for_the_same_weights_and_small_for_int8():
    plain, rounded = (LanguageModel(dataclasses.replace(fakes.CONFIG, decoding_dtype=dtype)) for dtype in ("", "int8"))
    params, prompts = fakes.params(plain), PromptBatch(np.full((8, 3), 5, np.int32), np.ones((8, 3), np.int32))
    keys, ends = sampling.row_keys(jax.random.key(0), 8), {"max_response": 6, "eos_id": 1, "pad_id": 0}
    draw = jax.jit(lambda params: sampling.sample(rounded, params, prompts, keys, sampling.categorical(), **ends)[0])
    episodes = draw(params)
    inside = np.asarray(episodes.response_mask) > 0
    np.testing.assert_allclose(int8.divergence(plain, params, plain, episodes), 0, atol=1e-6)
    kl, ratios = int8.divergence(plain, params, rounded, episodes), int8.log_ratios(plain, params, episodes)
    assert 0 < kl[inside].mean() < 1e-2 and 1e-5 < np.abs(ratios[inside]).max() < 0.5
    assert (kl[~inside] == 0).all() and (ratios[~inside] == 0).all()
