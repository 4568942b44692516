"""Rows that take the next prompt when they are done: the same tokens as one row for each prompt."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batch import PromptBatch
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import refilling, sampling
from tests import fakes

EOS, PAD, P, R, N = 1, 0, 4, 7, 12
ENDS = {"max_response": R, "eos_id": EOS, "pad_id": PAD}
MODEL = LanguageModel(fakes.CONFIG)
# Logits far enough apart that products of other shapes, which round otherwise, change no token.
PARAMS = fakes.params(MODEL, noise=0.15)


def prompts(seed):
    rng = np.random.default_rng(seed)
    segments = (np.arange(P) >= rng.integers(0, P, size=(N, 1))).astype(np.int32)
    return PromptBatch(rng.integers(2, 12, size=segments.shape).astype(np.int32) * segments, segments)


@functools.cache
def both(config, rows, refill, eos):
    """(prompts, keys) -> what a row for each prompt gives, and what fewer rows give."""
    model, ends, choose = LanguageModel(config), ENDS | {"eos_id": eos}, sampling.categorical()

    @jax.jit
    def sample(prompts, keys):
        plain = sampling.sample(model, PARAMS, prompts, keys, choose, **ends)
        return plain, refilling.sample(model, PARAMS, prompts, keys, choose, rows=rows, refill=refill, **ends)

    return sample


# Each pair of values once; a program takes seconds to compile.
@pytest.mark.parametrize(
    ("rows", "refill", "config", "by_layer"),
    [
        (4, 1, fakes.CONFIG, True),
        (4, 2, fakes.BANDED, False),
        (4, 4, fakes.BANDED, True),
        (12, 3, fakes.CONFIG, False),
        (1, 1, fakes.BANDED, True),
        (2, 4, fakes.CONFIG, False),
    ],
)
def test_the_tokens_are_those_of_a_row_for_each_prompt(config, rows, refill, by_layer):
    config = dataclasses.replace(config, cache_by_layer=by_layer)
    for seed in range(3):
        keys = sampling.row_keys(jax.random.key(seed), N)
        (expected, _), (found, _) = both(config, rows, refill, EOS)(prompts(seed), keys)
        for name in ("tokens", "segments", "positions", "response_mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
        sizes = np.asarray(expected.response_mask.sum(1))
        assert sizes.min() < sizes.max() == R  # some end early, and some do not


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_what_is_decoded_is_what_is_needed_and_what_rows_that_are_done_waste(seed):
    keys = sampling.row_keys(jax.random.key(seed), N)
    (expected, plain), (found, refilled) = both(fakes.CONFIG, 4, 1, EOS)(prompts(seed), keys)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    sizes = np.asarray(expected.response_mask.sum(1)).astype(int)
    assert int(plain) == N * (sizes.max() - 1)
    # Four rows, each of which takes the next prompt at once: a queue in front of four counters.
    rows, steps = [0] * 4, 0
    for size in sizes:
        place = int(np.argmin(rows))
        rows[place] += size - 1
        steps = max(steps, rows[place])
    assert int(refilled) == 4 * steps


def test_a_response_that_never_ends_is_cut_and_nothing_is_wasted():
    (expected, plain), (found, refilled) = both(fakes.CONFIG, 4, 4, -1)(
        prompts(0), sampling.row_keys(jax.random.key(0), N)
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert int(plain) == int(refilled) == N * (R - 1)
    assert float(jnp.min(found.response_mask)) == 1.0
