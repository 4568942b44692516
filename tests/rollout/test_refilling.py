"""Idle rows that take the next prompt give the same tokens as one row per prompt."""

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
# Logits are far enough apart that the different rounding of other shapes changes no token.
PARAMS = fakes.params(MODEL, noise=0.15)


def prompts(seed):
    rng = np.random.default_rng(seed)
    segments = (np.arange(P) >= rng.integers(0, P, size=(N, 1))).astype(np.int32)
    return PromptBatch(rng.integers(2, 12, size=segments.shape).astype(np.int32) * segments, segments)


@functools.cache
def both(config, rows, refill, eos):
    """Returns a function of (prompts, keys) that samples with a row per prompt, and with fewer rows."""
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
def test_the_tokens_are_those_of_one_row_per_prompt(config, rows, refill, by_layer):
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
def test_decoded_tokens_are_those_needed_and_those_of_idle_rows(seed):
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


def test_any_of_several_tokens_ends_a_response():
    (expected, _), (found, _) = both(fakes.CONFIG, 4, 1, (EOS, EOS + 1))(
        prompts(0), sampling.row_keys(jax.random.key(0), N)
    )
    for name in ("tokens", "segments", "response_mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    sizes = np.asarray(expected.response_mask.sum(1)).astype(int)
    last = np.asarray(expected.tokens)[np.arange(N), P + sizes - 1]
    assert {EOS, EOS + 1} <= set(last[sizes < R].tolist()) <= {EOS, EOS + 1}


def test_responses_that_never_end_are_truncated_and_waste_nothing():
    (expected, plain), (found, refilled) = both(fakes.CONFIG, 4, 4, -1)(
        prompts(0), sampling.row_keys(jax.random.key(0), N)
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert int(plain) == int(refilled) == N * (R - 1)
    assert float(jnp.min(found.response_mask)) == 1.0
