"""The sampler, with a fake model that predicts "previous + 1", and with a real one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batch import PromptBatch
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import consistency, episode, sampling
from tests import fakes

V = 12  # of the fake model, which counts modulo V
PAD = 0
P, R = 3, 6


def prompts_of(rows, width=P):
    """Returns prompts, padded on the left."""
    tokens, segments = np.full((len(rows), width), PAD, np.int32), np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = row
        segments[i, width - len(row) :] = 1
    return PromptBatch(jnp.asarray(tokens), jnp.asarray(segments))


def count_up(tokens, segments, positions, cache):
    """Acts as a model that always predicts the last token plus 1. Its cache counts tokens."""
    del segments, positions
    return 50.0 * jax.nn.one_hot((tokens[:, -1] + 1) % V, V), cache + tokens.shape[1]


class Recorded:
    """`count_up` that records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, tokens, segments, positions, cache):
        self.calls.append((*map(np.asarray, (tokens, segments, positions)), int(cache)))
        return count_up(tokens, segments, positions, cache)


def generate(forward, prompts, choose=sampling.greedy, *, max_response=R, eos_id):
    keys = sampling.row_keys(jax.random.key(0), prompts.tokens.shape[0])
    episodes, _ = sampling.generate(
        forward, jnp.zeros((), jnp.int32), prompts, keys, choose, max_response=max_response, eos_id=eos_id, pad_id=PAD
    )
    return episodes


@jax.jit
def counted(prompts, eos_id):
    return generate(count_up, prompts, eos_id=eos_id)


mask_mismatches, ended = jax.jit(consistency.mask_mismatches), jax.jit(episode.ended)


class TestWithAModelThatCounts:
    def test_a_response_ends_with_eos(self):
        episodes = counted(prompts_of([[3], [9, 5], [1, 1, 7]]), 8)
        np.testing.assert_array_equal(
            episodes.tokens, [[0, 0, 3, 4, 5, 6, 7, 8, 0], [0, 9, 5, 6, 7, 8, 0, 0, 0], [1, 1, 7, 8, 0, 0, 0, 0, 0]]
        )
        np.testing.assert_array_equal(
            episodes.response_mask, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
        )
        np.testing.assert_array_equal(
            episodes.segments, [[0, 0, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0]]
        )
        real = np.asarray(episodes.segments) > 0
        np.testing.assert_array_equal(
            np.asarray(episodes.positions)[real], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 1, 2, 3]
        )

    @given(st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=P), min_size=4, max_size=4), st.integers(1, V))
    @settings(max_examples=60, deadline=None)
    def test_episodes_are_consistent_for_any_prompts_and_any_eos(self, rows, eos):
        # Counting passes PAD (0), which is then a token like any other: masks are not `tokens != PAD`.
        episodes = counted(prompts_of(rows), eos)
        for i, row in enumerate(rows):
            response = [(row[-1] + 1 + k) % V for k in range(R)]
            size = response.index(eos) + 1 if eos in response else R
            np.testing.assert_array_equal(episodes.tokens[i, P:], response[:size] + [PAD] * (R - size))
            np.testing.assert_array_equal(episodes.response_mask[i], [1] * size + [0] * (R - size))
            np.testing.assert_array_equal(episodes.segments[i, P:], [1] * size + [0] * (R - size))
            np.testing.assert_array_equal(episodes.tokens[i, P - len(row) : P], row)
            start, real = P - len(row), len(row) + size
            np.testing.assert_array_equal(episodes.positions[i, start : start + real], range(real))

    @pytest.mark.parametrize(
        ("last_tokens", "calls"),
        [([7, 7], 1), ([7, 5], 3), ([2, 7], R), ([8, 8], R)],
        ids=["at once", "in three steps", "just in time", "never"],
    )
    def test_the_loop_ends_with_the_last_row(self, last_tokens, calls):
        forward = Recorded()
        with jax.disable_jit():
            generate(forward, prompts_of([[token] for token in last_tokens]), eos_id=8)
        assert len(forward.calls) == calls  # the prompt, then one for each further token

    def test_the_model_sees_every_token_at_its_position(self):
        forward = Recorded()
        with jax.disable_jit():
            generate(forward, prompts_of([[9, 6], [4]]), eos_id=8)
        assert [cache for *_, cache in forward.calls] == [0, 3, 4, 5]
        tokens, segments, positions, _ = forward.calls[0]
        np.testing.assert_array_equal(tokens, [[0, 9, 6], [0, 0, 4]])
        np.testing.assert_array_equal(segments, [[0, 1, 1], [0, 0, 1]])
        np.testing.assert_array_equal(positions, [[0, 0, 1], [0, 0, 0]])
        # Then one token per row, at the next position; EOS is not read, and finished rows are padding.
        later = forward.calls[1:]
        assert [row[0][1, 0] for row in later] == [5, 6, 7]
        assert [row[2][1, 0] for row in later] == [1, 2, 3]
        assert [row[1][1, 0] for row in later] == [1, 1, 1]
        assert (later[0][0][0, 0], later[0][1][0, 0], later[0][2][0, 0]) == (7, 1, 2)
        assert [row[1][0, 0] for row in later] == [1, 0, 0]

    @given(st.lists(st.integers(1, V - 1), min_size=4, max_size=4), st.sets(st.integers(0, V), min_size=1, max_size=3))
    @settings(max_examples=20, deadline=None)
    def test_any_of_several_tokens_ends_a_response(self, last, ends):
        episodes = counted(prompts_of([[token] for token in last]), tuple(sorted(ends)))
        for i, token in enumerate(last):
            response = [(token + 1 + k) % V for k in range(R)]
            size = next((k + 1 for k, one in enumerate(response) if one in ends), R)
            np.testing.assert_array_equal(episodes.tokens[i, P:], response[:size] + [PAD] * (R - size))
            np.testing.assert_array_equal(episodes.response_mask[i], [1] * size + [0] * (R - size))
        assert mask_mismatches(episodes, tuple(ends)) == 0
        expected = [any((token + 1 + k) % V in ends for k in range(R)) for token in last]
        np.testing.assert_array_equal(ended(episodes, tuple(ends)), expected)

    def test_eos_in_the_prompt_does_not_end_the_response(self):
        episodes = counted(prompts_of([[8, 5], [8]]), 8)
        np.testing.assert_array_equal(episodes.response_mask.sum(1), [3, R])


class TestChoice:
    def test_tokens_are_drawn_from_the_softmax(self):
        logits, size = jnp.array([0.3, -1.0, 1.2, 0.0]), 20_000
        for temperature in (1.0, 2.0):
            choose, keys = jax.jit(sampling.categorical(temperature)), sampling.row_keys(jax.random.key(0), size)
            drawn, log_probs = choose(jnp.tile(logits, (size, 1)), keys, jnp.full(size, 3))
            np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits / temperature)[drawn], rtol=1e-5)
            found = np.bincount(drawn, minlength=4)
            expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum() * size
            assert scipy.stats.chisquare(found, expected, sum_check=False).pvalue > 0.01

    @given(st.integers(1, 70), st.integers(0, 1000))
    @settings(max_examples=40, deadline=None)
    def test_a_quantile_is_the_first_token_whose_cumulative_probability_exceeds_the_number(self, vocabulary, seed):
        rng = np.random.default_rng(seed)
        logits, uniform = rng.normal(scale=3, size=(8, vocabulary)), rng.random(8)
        cumulative = np.cumsum(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), axis=1)
        clear = np.abs(cumulative - uniform[:, None]).min(1) > 1e-5
        found = np.asarray(sampling.quantile(jnp.asarray(logits), jnp.asarray(uniform)))
        expected = (cumulative <= uniform[:, None]).sum(1)
        np.testing.assert_array_equal(found[clear], expected[clear])

    def test_a_token_of_probability_zero_is_never_chosen(self):
        """This holds at the ends of the unit interval, and if probabilities do not add up to one."""
        never = -jnp.inf
        logits = jnp.array([[never, 0.1, never, 0.2, never], [never] * 4 + [5.0], [0.3] + [never] * 4])
        last = 1 - 2.0**-24
        for uniform, expected in ((0.0, [1, 4, 0]), (last, [3, 4, 0])):
            np.testing.assert_array_equal(sampling.quantile(logits, jnp.full(3, uniform)), expected)

    def test_rows_and_steps_draw_independently(self):
        choose, keys = sampling.categorical(), sampling.row_keys(jax.random.key(1), 5_000)
        logits = jnp.zeros((5_000, 2))
        first, second = (np.asarray(choose(logits, keys, jnp.full(5_000, step))[0]) for step in (0, 1))
        for left, right in ((first, second), (first[1:], first[:-1])):
            assert scipy.stats.chi2_contingency(np.histogram2d(left, right, 2)[0]).pvalue > 0.01

    @given(st.integers(0, 1000))
    @settings(max_examples=20, deadline=None)
    def test_a_low_temperature_is_greedy(self, seed):
        logits = jax.random.normal(jax.random.key(seed), (16, 8))
        top = jax.lax.top_k(logits, 2)[0]
        clear = np.asarray(top[:, 0] - top[:, 1] > 1e-2)
        rest = sampling.row_keys(jax.random.key(7), 16), jnp.zeros(16, jnp.int32)
        drawn, _ = sampling.categorical(1e-4)(logits, *rest)
        np.testing.assert_array_equal(drawn[clear], sampling.greedy(logits, *rest)[0][clear])

    def test_a_row_key_depends_on_the_number_of_the_row_in_the_global_batch(self):
        data = jax.random.key_data
        whole = data(sampling.row_keys(jax.random.key(3), 8))
        np.testing.assert_array_equal(data(sampling.row_keys(jax.random.key(3), 4, 4)), whole[4:])
        assert len(np.unique(whole, axis=0)) == 8


ROWS = [[3, 9, 5], [7], [2, 2, 4, 11], [6, 1]]
KEYS = sampling.row_keys(jax.random.key(11), 4)
EOS = 1


@functools.cache
def sampler(config=fakes.CONFIG, temperature=1.0):
    """Returns (params, prompts, keys) -> Episodes, with the real model; temperature 0 is greedy."""
    model = LanguageModel(config)

    @jax.jit
    def sample(params, prompts, keys):
        choose = sampling.categorical(temperature) if temperature else sampling.greedy
        return sampling.sample(model, params, prompts, keys, choose, max_response=R, eos_id=EOS, pad_id=PAD)[0]

    return sample


def responses(episodes):
    return np.asarray(jnp.where(episodes.response_mask > 0, episodes.tokens[:, -R:], -1))


class TestWithTheLanguageModel:
    params = fakes.params(LanguageModel(fakes.CONFIG), noise=0.15)

    @pytest.mark.parametrize("config", [fakes.CONFIG, fakes.BANDED], ids=["dense", "banded"])
    def test_greedy_sampling_is_the_argmax_of_full_forward_passes(self, config):
        episodes = sampler(config, 0.0)(self.params, prompts_of(ROWS, 4), KEYS)
        forward = jax.jit(lambda *row: LanguageModel(config).apply({"params": self.params}, *row)[0])
        width = 4 + R
        for row, found, mask in zip(ROWS, episodes.tokens[:, 4:], episodes.response_mask, strict=True):
            tokens = list(row)
            while len(tokens) < len(row) + R and (len(tokens) == len(row) or tokens[-1] != EOS):
                padded = jnp.array([tokens + [PAD] * (width - len(tokens))])
                inside = (jnp.arange(width) < len(tokens)).astype(jnp.int32)[None]
                logits = forward(padded, inside, jnp.arange(width)[None] * inside)[0, len(tokens) - 1]
                tokens.append(int(logits.argmax()))
            size = len(tokens) - len(row)
            assert list(map(int, found[:size])) == tokens[len(row) :]
            assert float(mask.sum()) == size

    @pytest.mark.parametrize("by_layer", [True, False])
    def test_kernels_that_are_rounded_once_give_the_log_probabilities_of_a_full_pass(self, by_layer):
        config = dataclasses.replace(fakes.CONFIG, matmul_dtype="bfloat16", cache_by_layer=by_layer)
        episodes = sampler(config, 1.0)(self.params, prompts_of(ROWS, 4), KEYS)
        found = episode.response_log_probs(LanguageModel(config), self.params, episodes)
        np.testing.assert_allclose(found, episodes.log_probs * episodes.response_mask, atol=0.02)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_the_amount_of_padding_changes_no_token(self, temperature):
        sample = sampler(temperature=temperature)
        narrow, wide = (responses(sample(self.params, prompts_of(ROWS, width), KEYS)) for width in (4, 9))
        np.testing.assert_array_equal(narrow, wide)

    def test_a_row_depends_only_on_its_key_and_prompt(self):
        sample = sampler()
        together = responses(sample(self.params, prompts_of(ROWS, 4), KEYS))
        order = jnp.array([2, 0, 3, 1])
        shuffled = responses(sample(self.params, prompts_of([ROWS[i] for i in order], 4), KEYS[order]))
        np.testing.assert_array_equal(shuffled, together[order])
        other = responses(sample(self.params, prompts_of([ROWS[0], [8, 8], [9], [1, 2, 3]], 4), KEYS))
        np.testing.assert_array_equal(other[0], together[0])
        alone = responses(sample(self.params, prompts_of(ROWS[2:3], 4), KEYS[2:3]))
        np.testing.assert_array_equal(alone[0], together[2])
        assert not np.array_equal(responses(sample(self.params, prompts_of(ROWS, 4), KEYS[order])), together)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, V), st.floats(0.05, 1.0), st.integers(0, 2**31 - 1))
def test_truncation_keeps_the_most_likely_tokens(top_k, top_p, seed):
    logits = np.random.default_rng(seed).normal(size=(3, V)).astype(np.float32) * 2
    found = np.asarray(sampling.truncate(logits, top_k, top_p))
    for row, kept in zip(logits, np.isfinite(found), strict=True):
        order = np.argsort(-row)
        weights = np.exp(row[order] - row.max())
        weights /= weights.sum()
        before = np.cumsum(weights) - weights
        close = np.abs(before - top_p) < 1e-5  # rounding may decide either way
        expected = (before < top_p) & (np.arange(V) < (top_k or V))
        assert ((kept[order] == expected) | close).all()
        assert kept[order[0]]
    np.testing.assert_array_equal(found[np.isfinite(found)], logits[np.isfinite(found)])


def test_truncated_tokens_are_never_drawn():
    logits = jnp.broadcast_to(jnp.arange(6.0), (500, 6))
    keys, steps = sampling.row_keys(jax.random.key(0), 500), jnp.zeros(500, jnp.int32)
    tokens, log_probs = sampling.categorical(1.0, top_k=3)(logits, keys, steps)
    assert set(np.asarray(tokens).tolist()) == {3, 4, 5}
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits[:, 3:])[jnp.arange(500), tokens - 3], rtol=1e-5)


class TestWidths:
    def test_each_width_is_half_of_the_next(self):
        assert sampling.halved(20, 1) == (20,)
        assert sampling.halved(21, 4) == (3, 6, 11, 21)

    @pytest.mark.parametrize(("longest", "expected"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
    def test_the_least_width_that_holds_all_prompts_is_sampled(self, monkeypatch, longest, expected):
        """Samples with a fake that answers with the tokens of the last column and the width it was given."""

        def last_column(model, params, prompts, keys, choose, *, max_response, eos_id, pad_id):
            width = prompts.tokens.shape[1]
            tokens = jnp.repeat(prompts.tokens, 2, axis=0)
            responses = jnp.broadcast_to(tokens[:, -1:], (4, max_response))
            log_probs = jnp.full(responses.shape, -0.5)
            return sampling.episodes(
                jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), prompts), responses, log_probs, eos_id
            ), jnp.asarray(width)

        monkeypatch.setattr(sampling, "sample", last_column)
        segments = np.asarray([[0] * (8 - longest) + [1] * longest, [0] * 7 + [1]], np.int32)
        prompts = PromptBatch(segments * np.asarray([[3], [4]], np.int32), segments)
        keys = sampling.row_keys(jax.random.key(0), 4)
        ends = {"max_response": 3, "eos_id": 1, "pad_id": 0}
        found, width = sampling.sample_narrow(None, {}, prompts, keys, sampling.greedy, widths=(2, 4, 8), **ends)
        assert width == expected
        np.testing.assert_array_equal(found.tokens[:, :8], np.repeat(prompts.tokens, 2, axis=0))
        np.testing.assert_array_equal(found.segments[:, :8], np.repeat(segments, 2, axis=0))
        np.testing.assert_array_equal(found.tokens[:, 8:], np.repeat([3, 3, 4, 4], 3).reshape(4, 3))
        np.testing.assert_array_equal(found.log_probs, np.full((4, 3), -0.5))
