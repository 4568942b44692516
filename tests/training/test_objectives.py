"""Compares losses of whole batches with loops over rows, answers and tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.batch import LMBatch
from instructjax.data.layouts import TokenizedRanking
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.training import objectives
from tests import fakes, oracles

T, V = 10, fakes.CONFIG.vocab_size
KEY = jax.random.key(0)


def rows(lengths, seed=0):
    """Returns (tokens, segments, positions), [..., T], for lengths [...]; padding holds arbitrary tokens."""
    lengths = np.asarray(lengths)
    tokens = np.random.default_rng(seed).integers(0, V, size=(*lengths.shape, T))
    inside = np.arange(T) < lengths[..., None]
    return (
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(inside, jnp.int32),
        jnp.asarray(np.where(inside, np.arange(T), 0)),
    )


def language_batch():
    tokens, segments, positions = rows([10, 6, 3])
    weights = np.random.default_rng(1).uniform(size=(3, T)).astype(np.float32) * np.asarray(segments)
    weights[:, 0] = 0
    return LMBatch(tokens, segments, positions, jnp.asarray(weights))


def ranked(prompt, sizes, scores, seed):
    """Returns a ranking of random tokens with these lengths of prompt and answers."""
    rng = np.random.default_rng(seed)
    return TokenizedRanking(rng.integers(0, V, prompt), [rng.integers(0, V, size) for size in sizes], scores)


RANKINGS = [
    ranked(3, (7, 4, 2, 6), (3.0, 1.0, 2.0, 2.0), seed=1),
    ranked(1, (3, 5, 1), (1.0, 5.0, 4.0), seed=2),
    ranked(5, (4, 1), (0.0, 1.0), seed=3),
]
ROWS = [[RANKINGS[0]], [RANKINGS[1], RANKINGS[2]], []]  # the third is padding


def ranking_batch():
    """Returns a row with four answers to a prompt, and one with three and two answers to two prompts; with padding."""
    return oracles.packed(ROWS, length=24, prompts=3, answers=4)


def test_a_token_is_predicted_from_those_before_it():
    model, params = fakes.language_model()
    batch = language_batch()
    (total, weight), metrics = jax.jit(objectives.language_model_loss(model))(params, batch, KEY)
    logits, _ = model.apply({"params": params}, batch.tokens, batch.segments, batch.positions)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected, right = 0.0, 0.0
    for b in range(3):
        for t in range(1, T):
            token = int(batch.tokens[b, t])
            expected -= float(batch.weights[b, t]) * log_probs[b, t - 1, token]
            right += float(batch.weights[b, t]) * (log_probs[b, t - 1].argmax() == token)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, np.sum(batch.weights), rtol=1e-6)
    np.testing.assert_allclose(metrics["token_accuracy"].total, right, rtol=1e-5)
    assert (
        metrics["padding"].total == np.sum(batch.segments == 0) > 0 and metrics["padding"].weight == batch.segments.size
    )


def test_each_answer_is_scored_as_if_it_were_alone():
    model, params = fakes.scalar_model()
    batch = ranking_batch()
    rewards = jax.jit(lambda batch: objectives.rewards_of(model, params, batch))(batch)
    assert rewards.shape == batch.scores.shape
    alone = oracles.naive(RANKINGS, length=T, answers=4)
    expected = jax.jit(lambda alone: oracles.naive_rewards(model, params, alone))(alone)
    found = oracles.taken(rewards, ROWS)
    np.testing.assert_allclose(found[alone.valid], expected[alone.valid], rtol=1e-4, atol=1e-5)


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens_after_its_prompt():
    model, params = fakes.language_model()
    batch = ranking_batch()
    found = jax.jit(lambda batch: objectives.answer_log_probs(model, params, batch))(batch)
    found = oracles.taken(found, ROWS)
    apply = jax.jit(lambda *row: jax.nn.log_softmax(model.apply({"params": params}, *row)[0]))
    for b, ranking in enumerate(RANKINGS):
        for k, answer in enumerate(ranking.responses):
            tokens = np.zeros((1, T), np.int32)
            start, end = len(ranking.prompt), len(ranking.prompt) + len(answer)
            tokens[0, :end] = [*ranking.prompt, *answer]
            table = apply(tokens, (np.arange(T) < end)[None].astype(np.int32), np.arange(T)[None])
            expected = sum(float(table[0, t - 1, tokens[0, t]]) for t in range(start, end))
            np.testing.assert_allclose(found[b, k], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[b, len(ranking.responses) :], 0.0)


def test_the_ranking_loss_uses_these_rewards_and_ignores_missing_answers():
    model, params = fakes.scalar_model()
    batch = ranking_batch()
    differentiate = jax.jit(jax.value_and_grad(lambda p, b: objectives.ranking_loss(model)(p, b, KEY)[0][0]))
    (_, weight), metrics = jax.jit(objectives.ranking_loss(model))(params, batch, KEY)
    tokens = sum(len(ranking) for ranking in RANKINGS)
    assert metrics["padding"].total == batch.tokens.size - tokens and metrics["padding"].weight == batch.tokens.size
    rewards = objectives.rewards_of(model, params, batch)
    total, gradient = differentiate(params, batch)
    ranked = [array.reshape(9, 4) for array in (rewards, batch.scores, batch.valid)]
    np.testing.assert_allclose(total, losses.ranking_loss(*ranked)[0], rtol=1e-5)
    accuracy = metrics["accuracy"]
    np.testing.assert_allclose((accuracy.total, accuracy.weight), losses.ranking_accuracy(*ranked))
    assert float(weight) == 3
    other = batch.replace(tokens=jnp.where(batch.segments > 0, batch.tokens, 3))
    other = other.replace(scores=jnp.where(batch.valid, batch.scores, 9.0))
    changed, changed_gradient = differentiate(params, other)
    np.testing.assert_allclose(changed, total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), changed_gradient, gradient)


@pytest.mark.parametrize(
    ("kind", "objective", "batch"),
    [
        (LanguageModel, objectives.language_model_loss, language_batch()),
        (ScalarModel, objectives.ranking_loss, ranking_batch()),
    ],
    ids=["language_model", "ranking"],
)
def test_dropout_depends_on_the_key_and_needs_a_positive_rate(kind, objective, batch):
    plain = kind(fakes.CONFIG)
    noisy = kind(dataclasses.replace(fakes.CONFIG, dropout=0.3))
    params = fakes.params(plain)

    def totals(model):
        loss = jax.jit(lambda key: objective(model)(params, batch, key)[0][0])
        return [float(loss(jax.random.key(seed))) for seed in (0, 0, 1)]

    first, again, other = totals(noisy)
    assert first == again != other
    without = objective(plain)(params, batch, None)[0][0]
    np.testing.assert_allclose(totals(plain), [without] * 3, rtol=1e-5)
    assert abs(float(without) - first) > 1e-3
