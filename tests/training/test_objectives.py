"""Losses of whole batches against loops over their rows, one answer and one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.batch import LMBatch, RankingBatch
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.training import objectives
from tests import tiny_models

T, V = 10, tiny_models.CONFIG.vocab_size
KEY = jax.random.key(0)


def rows(lengths, seed=0):
    """(tokens, segments, positions), [..., T] from lengths [...]; padding holds tokens that mean nothing."""
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


def ranking_batch():
    """Four answers, three answers, and two of which one is empty padding."""
    tokens, segments, positions = rows([[10, 7, 5, 9], [4, 6, 8, 0], [3, 10, 0, 0]])
    scores = jnp.array([[3.0, 1.0, 2.0, 2.0], [1.0, 5.0, 4.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    return RankingBatch(tokens, segments, positions, scores, jnp.asarray(segments[..., 0] > 0))


def test_a_token_is_predicted_from_those_before_it():
    model, params = tiny_models.language_model()
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
    np.testing.assert_allclose(metrics["token_accuracy"][0], right, rtol=1e-5)


def test_each_answer_is_scored_as_if_it_were_alone():
    model, params = tiny_models.scalar_model()
    batch = ranking_batch()
    rewards = jax.jit(lambda batch: objectives.rewards_of(model, params, batch))(batch)
    assert rewards.shape == batch.scores.shape
    apply = jax.jit(lambda *row: model.apply({"params": params}, *row))
    for b, k in np.argwhere(np.asarray(batch.valid)):
        row = jax.tree.map(lambda x, b=b, k=k: x[b, k][None], (batch.tokens, batch.segments, batch.positions))
        last = int(batch.segments[b, k].sum()) - 1
        np.testing.assert_allclose(rewards[b, k], apply(*row)[0, last], rtol=1e-4, atol=1e-5)


def test_the_ranking_loss_reads_those_rewards_and_ignores_missing_answers():
    model, params = tiny_models.scalar_model()
    batch = ranking_batch()
    differentiate = jax.jit(jax.value_and_grad(lambda p, b: objectives.ranking_loss(model)(p, b, KEY)[0][0]))
    (_, weight), metrics = jax.jit(objectives.ranking_loss(model))(params, batch, KEY)
    rewards = objectives.rewards_of(model, params, batch)
    total, gradient = differentiate(params, batch)
    np.testing.assert_allclose(total, losses.ranking_loss(rewards, batch.scores, batch.valid)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], losses.ranking_accuracy(rewards, batch.scores, batch.valid))
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
def test_dropout_is_drawn_from_the_key_and_only_where_there_is_a_rate(kind, objective, batch):
    plain = kind(tiny_models.CONFIG)
    noisy = kind(dataclasses.replace(tiny_models.CONFIG, dropout=0.3))
    params = tiny_models.params(plain)

    def totals(model):
        loss = jax.jit(lambda key: objective(model)(params, batch, key)[0][0])
        return [float(loss(jax.random.key(seed))) for seed in (0, 0, 1)]

    first, again, other = totals(noisy)
    assert first == again != other
    without = objective(plain)(params, batch, None)[0][0]
    np.testing.assert_allclose(totals(plain), [without] * 3, rtol=1e-5)
    assert abs(float(without) - first) > 1e-3
