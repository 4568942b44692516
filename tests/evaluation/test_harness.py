"""What lm-evaluation-harness asks of a model, compared with plain forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import DataError
from instructjax.evaluation import harness
from tests import fakes

MODEL, PARAMS = fakes.language_model()
LENGTH = MODEL.config.max_length


@jax.jit
def plain_logits(row):
    """Returns the logits [T, V] of one row; tokens behind its end change nothing before it."""
    return MODEL.apply({"params": PARAMS}, row[None], jnp.ones((1, LENGTH), jnp.int32), jnp.arange(LENGTH)[None])[0][0]


def alone(context, continuation):
    """Returns the log-likelihood of a continuation, and whether it is the most likely, from a plain forward pass."""
    tokens = [*context, *continuation]
    log_probs = jax.nn.log_softmax(plain_logits(jnp.array([*tokens, *[0] * (LENGTH - len(tokens))])))
    steps = range(len(context) - 1, len(tokens) - 1)
    return (
        float(sum(log_probs[t, tokens[t + 1]] for t in steps)),
        all(int(jnp.argmax(log_probs[t])) == tokens[t + 1] for t in steps),
    )


def most_likely(context):
    return int(jnp.argmax(plain_logits(jnp.array([*context, *[0] * (LENGTH - len(context))]))[len(context) - 1]))


def test_log_likelihoods_are_those_of_each_pair_alone():
    greedy = most_likely([3, 4])
    pairs = [([3, 4], [greedy]), ([3, 4], [5, 6, 7]), ([8], [2]), ([3, 4], [greedy, 2]), ([9] * LENGTH, [2, 3])]
    found = harness.log_likelihoods(MODEL, PARAMS, pairs, pad_id=0, batch_size=2)
    expected = [alone(context[-(LENGTH - len(continuation)) :], continuation) for context, continuation in pairs]
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected] and found[0][1] and not found[1][1]


@pytest.mark.parametrize("continuation", [[], [2] * LENGTH])
def test_a_continuation_without_tokens_or_room_is_refused(continuation):
    with pytest.raises(DataError, match=f"harness: expected a continuation of 1 to {LENGTH - 1} tokens, found "):
        harness.log_likelihoods(MODEL, PARAMS, [([2], continuation)], pad_id=0, batch_size=1)


def test_windows_predict_each_token_once():
    found = list(harness.windows(list(range(10)), -1, max_length=5))
    assert found == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert list(harness.windows([1, 2], -1, max_length=5)) == [([-1], [1, 2])]
    assert not list(harness.windows([], -1, max_length=5))


class Numbers:
    """A tokenizer whose texts are letters, from a for token 2."""

    pad_id, eos_id, eos_ids, bos, vocab_size, fingerprint = 0, 1, (1,), (), 16, "numbers"

    def lost(self, text):
        return ""

    def encode(self, text):
        return [ord(letter) - 95 for letter in text]

    encode_opening = encode

    def decode(self, ids):
        return "".join(chr(95 + i) for i in ids if i > 1)

    def to_bytes(self):
        raise NotImplementedError

    def save(self, path):
        raise NotImplementedError


def test_samples_are_greedy_and_end_before_the_stop():
    def generate(prompts, stop=()):
        return harness.generate(
            MODEL, PARAMS, Numbers(), prompts, max_tokens=4, stop=stop, temperature=0.0, batch_size=2
        )

    long = "ab" * LENGTH  # of which the end fits
    found = generate(["ab", "c", long])
    for prompt, text in zip(["ab", "c", long[-(LENGTH - 4) :]], found, strict=True):
        tokens = Numbers().encode(prompt)
        for letter in text:
            assert most_likely(tokens) == Numbers().encode(letter)[0]
            tokens.append(most_likely(tokens))
    assert generate(["ab"], stop=["", found[0][1:3]]) == [found[0][: found[0].index(found[0][1:3])]]
    with pytest.raises(DataError, match="harness: expected a prompt to continue, found an empty one"):
        generate(["ab", ""])
