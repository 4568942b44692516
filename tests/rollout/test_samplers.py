"""Answers as texts do not depend on the batch size or on idle rows, and are scored on the sampled tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.batch import Episodes
from instructjax.data.layouts import Layout
from instructjax.errors import DataError
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import episode, samplers
from instructjax.text.sentencepiece import SentencePieceTokenizer
from instructjax.training import parallel
from tests import fakes

TOKENIZER = SentencePieceTokenizer.train(["the fox runs and the owl sleeps in the red forest"] * 9, 300)
LAYOUT = Layout(TOKENIZER, "\n", max_prompt=12, max_response=6)
CONFIG = dataclasses.replace(fakes.CONFIG, vocab_size=TOKENIZER.vocab_size)
MODEL, PARAMS = fakes.language_model(CONFIG, noise=0.1)
KEY = jax.random.key(3)
MESH = {"mode": "jit", "data": 2, "fsdp": 4, "tensor": 1, "shard_optimizer_state": False}
PROMPTS = ["the fox", "the owl sleeps", "red", "in the forest", "runs and"]


def sample(batch_size, temperature=1.0, seed=0):
    sampler = samplers.make_sampler(MODEL, LAYOUT, temperature=temperature, batch_size=batch_size)
    return list(sampler(PARAMS, PROMPTS, jax.random.key(seed)))


@pytest.fixture(scope="module")
def batches():
    return sample(2)


def test_every_prompt_is_answered_once_and_in_order(batches):
    assert [len(texts) for _, texts in batches] == [2, 2, 1]
    asked = [TOKENIZER.decode(row[mask]) for e, _ in batches for row, mask in prompt_columns(e)]
    assert [text.removesuffix("\n") for text in asked[: len(PROMPTS)]] == PROMPTS
    assert len({text for _, texts in batches for text in texts}) > 1


def prompt_columns(episodes):
    width = LAYOUT.max_prompt
    return zip(np.asarray(episodes.tokens)[:, :width], np.asarray(episodes.segments)[:, :width] > 0, strict=True)


def test_an_answer_does_not_depend_on_the_batch_size(batches):
    expected = [text for _, texts in batches for text in texts]
    assert [text for _, texts in sample(5) for text in texts] == expected
    assert [text for _, texts in sample(5, seed=1) for text in texts] != expected


def test_an_answer_does_not_depend_on_continuous_batching(batches, monkeypatch):
    monkeypatch.setattr(samplers, "QUEUE", 2)  # three batches of 2 rows are two queues of 4 prompts
    sampler = samplers.make_sampler(MODEL, LAYOUT, temperature=1.0, batch_size=2, refill=1)
    found = list(sampler(PARAMS, PROMPTS, jax.random.key(0)))
    assert [len(texts) for _, texts in found] == [4, 1]
    assert [text for _, texts in found for text in texts] == [text for _, texts in batches for text in texts]


@pytest.mark.parametrize("refill", [0, 1])
def test_on_a_mesh_the_devices_share_the_rows_of_a_batch(batches, refill):
    with parallel.on_mesh(ml_collections.ConfigDict(MESH)):
        sampler = samplers.make_sampler(MODEL, LAYOUT, temperature=1.0, batch_size=3, refill=refill)
        found = list(sampler(PARAMS, PROMPTS, jax.random.key(0)))
    assert [len(episodes.tokens) for episodes, _ in found] == [8]
    assert [text for _, texts in found for text in texts] == [text for _, texts in batches for text in texts]


def answers_by_prompt(prompts):
    """Returns the answers to each prompt, in the order in which it was asked."""
    sampler = samplers.make_sampler(MODEL, LAYOUT, temperature=1.0, batch_size=2)
    texts = [text for _, batch in sampler(PARAMS, prompts, samplers.prompt_keys(KEY, prompts)) for text in batch]
    found = {}
    for prompt, text in zip(prompts, texts, strict=True):
        found.setdefault(prompt, []).append(text)
    return found


def test_with_keys_by_prompt_an_answer_does_not_depend_on_other_prompts_or_their_order():
    repeated = [*PROMPTS, *PROMPTS[:2]]
    found = answers_by_prompt(repeated)
    assert answers_by_prompt(repeated[::-1]) == found
    assert answers_by_prompt(PROMPTS[1:]) == {prompt: found[prompt][:1] for prompt in PROMPTS[1:]}
    assert any(len(set(texts)) > 1 for texts in found.values())  # a prompt that is repeated is answered again


@given(st.lists(st.sampled_from(["", "a", "b", "ab"]), min_size=6, max_size=6), st.randoms())
def test_a_key_follows_from_the_text_and_the_number_of_equal_texts_before_it(prompts, random):
    def keys(prompts):
        data = jax.random.key_data(samplers.prompt_keys(KEY, prompts)).tolist()
        return {(prompt, prompts[:i].count(prompt)): tuple(data[i]) for i, prompt in enumerate(prompts)}

    shuffled = random.sample(prompts, len(prompts))
    assert keys(shuffled) == keys(prompts)
    assert len(set(keys(prompts).values())) == len(prompts)


def test_at_temperature_zero_there_is_no_randomness():
    first, second = (sample(5, temperature=0.0, seed=seed) for seed in (0, 1))
    assert [texts for _, texts in first] == [texts for _, texts in second]


def test_a_text_is_the_response_without_eos_and_padding():
    fox = TOKENIZER.encode("the fox")
    size = len(fox) + 2

    def row(response, real):
        return [5, *response, *[TOKENIZER.pad_id] * (size - len(response))], [1] * real + [0] * (size - real)

    tokens, mask = zip(row([*fox, TOKENIZER.eos_id], len(fox) + 1), row([*fox, *fox[:2]], size), strict=True)
    tokens, mask = jnp.array(tokens), jnp.array(mask, jnp.float32)
    segments = jnp.concatenate([jnp.ones((2, 1), jnp.int32), mask.astype(jnp.int32)], axis=1)
    episodes = Episodes(tokens, segments, segments, mask, log_probs=0.0 * mask, group=np.arange(2))
    assert samplers.texts(LAYOUT, episodes) == ["the fox", "the fox" + TOKENIZER.decode(fox[:2])]


def test_scores_and_divergences_are_of_the_sampled_tokens(batches):
    episodes, _ = batches[0]
    scalar, scalar_params = fakes.scalar_model(CONFIG)
    expected = episode.score(scalar, scalar_params, episodes.tokens, episodes.segments, episodes.positions)
    np.testing.assert_allclose(samplers.make_scorer(scalar)(scalar_params, episodes), expected, rtol=1e-4, atol=1e-5)

    divergence = samplers.make_divergence(MODEL, 1.0)
    np.testing.assert_allclose(divergence(PARAMS, PARAMS, episodes), 0.0, atol=1e-6)
    reference = fakes.params(LanguageModel(CONFIG), seed=1, noise=0.1)
    ours, theirs = (episode.response_log_probs(MODEL, p, episodes).sum(1) for p in (PARAMS, reference))
    np.testing.assert_allclose(divergence(PARAMS, reference, episodes), ours - theirs, rtol=1e-3, atol=1e-4)


def test_a_divergence_is_taken_at_the_temperature_that_sampled():
    """At another temperature the estimate may be negative; at the right one it is that of the sampler itself."""
    episodes, _ = sample(5, temperature=0.3)[0]
    reference = fakes.params(LanguageModel(CONFIG), seed=1, noise=0.1)
    found = samplers.make_divergence(MODEL, 0.3)(PARAMS, reference, episodes)
    theirs = episode.response_log_probs(MODEL, reference, episodes, 0.3).sum(1)
    np.testing.assert_allclose(found, episodes.log_probs.sum(1) - theirs, rtol=1e-3, atol=1e-3)
    assert samplers.make_divergence(MODEL, 0.0) is None  # a policy without randomness


def test_a_prompt_that_is_too_long_is_rejected():
    sampler = samplers.make_sampler(MODEL, LAYOUT, temperature=1.0, batch_size=1)
    with pytest.raises(DataError, match=r"prompt: expected at most 12 tokens \(data.max_prompt\), found"):
        next(sampler(PARAMS, ["the fox " * 20], jax.random.key(0)))


def test_what_is_built_for_equal_models_is_the_same_and_so_compiled_once():
    one, again, other = (
        samplers.make_sampler(dataclasses.replace(MODEL), LAYOUT, temperature=1.0, batch_size=size)
        for size in (1, 1, 2)
    )
    assert one is again is not other
    scalar = ScalarModel(MODEL.config)
    assert samplers.make_scorer(scalar) is samplers.make_scorer(dataclasses.replace(scalar))
