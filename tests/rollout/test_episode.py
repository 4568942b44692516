"""Compares what PPO reads from episodes with each sequence alone, without padding and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batch import Episodes
from instructjax.rollout import episode, sampling
from tests import fakes

PAD, EOS = 0, 1
P, R = 5, 4
# Prompts and responses: ended early, ended in the last column, not ended, and with PAD as a sampled token.
PROMPTS = [[3, 7, 10, 5], [9, 1], [5, 12], [8, 8, 6]]  # with their responses 6 tokens each: one shape to compile
RESPONSES = [[6, EOS], [4, 2, 3, EOS], [7, 7, 2, 5], [PAD, 9, EOS]]


def episodes():
    tokens = np.full((4, P + R), PAD, np.int32)
    segments = np.zeros((4, P + R), np.int32)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        tokens[i, P - len(prompt) : P + len(response)] = prompt + response
        segments[i, P - len(prompt) : P + len(response)] = 1
    return Episodes(
        tokens=jnp.asarray(tokens),
        segments=jnp.asarray(segments),
        positions=sampling.positions_of(jnp.asarray(segments)),
        response_mask=jnp.asarray(segments[:, P:], jnp.float32),
        log_probs=jnp.zeros((4, R)),
        group=jnp.arange(4),
    )


def alone(row):
    """Returns (tokens, segments, positions) [1, n] of one sequence without padding."""
    tokens = jnp.array([PROMPTS[row] + RESPONSES[row]])
    return tokens, jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_each_token_after_all_before_it(temperature):
    model, params = fakes.language_model()
    found = jax.jit(lambda e: episode.response_log_probs(model, params, e, temperature))(episodes())
    assert found.shape == (4, R)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits, _ = model.apply({"params": params}, *alone(row))
        expected = np.zeros(R)
        for t, token in enumerate(response):
            expected[t] = jax.nn.log_softmax(logits[0, len(prompt) + t - 1] / temperature)[token]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_values_are_those_before_each_token():
    model, params = fakes.scalar_model()
    found = jax.jit(lambda e: episode.response_values(model, params, e))(episodes())
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        scalars = model.apply({"params": params}, *alone(row))[0]
        expected = [scalars[len(prompt) + t - 1] for t in range(len(response))] + [0.0] * (R - len(response))
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_the_score_is_read_at_the_last_real_token():
    model, params = fakes.scalar_model()
    score = jax.jit(lambda *rows: episode.score(model, params, *rows))
    batch = episodes()
    found = score(batch.tokens, batch.segments, batch.positions)
    for row in range(4):
        expected = model.apply({"params": params}, *alone(row))[0, -1]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)
        # Padded on the right, as in the reward model's training.
        size = len(PROMPTS[row]) + len(RESPONSES[row])
        widths = ((0, 0), (0, P + R + 3 - size))
        tokens, segments, positions = (jnp.pad(x, widths) for x in alone(row))
        right = score(jnp.where(segments > 0, tokens, 13), segments, positions)
        np.testing.assert_allclose(right[0], found[row], rtol=1e-4, atol=1e-5)


def test_last_token_of_any_layout():
    segments = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(episode.last_token(segments), [1, 3, 1, -1])


def test_ended_means_eos_in_the_response():
    # The second prompt also holds EOS, and the third response has none.
    np.testing.assert_array_equal(episode.ended(episodes(), EOS), [True, True, False, True])
    # The fourth response holds PAD as a token; padding does not end a response.
    np.testing.assert_array_equal(episode.ended(episodes(), PAD), [False, False, False, True])
