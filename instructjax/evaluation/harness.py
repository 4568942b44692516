"""What lm-evaluation-harness asks of a language model, on tokens: log-likelihoods of continuations, and samples.

`experiments/lm_harness.py` gives it to the harness as a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.data.layouts import TokenizedRanking
from instructjax.errors import DataError
from instructjax.evaluation.tasks import outputs
from instructjax.models.transformer import LanguageModel
from instructjax.text.tokenizer import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context, at least one, and of its continuation


def log_likelihoods(
    model: LanguageModel, params: Any, pairs: Sequence[Pair], *, pad_id: int, batch_size: int
) -> list[tuple[float, bool]]:
    """Computes the log-likelihood of continuations, in nats, and whether greedy decoding would produce them.

    Consecutive pairs with one context, such as the choices of a question, go through the model as one row. The
    beginning of a context that does not fit the model is dropped.

    Args:
      model: a language model.
      params: its weights.
      pairs: contexts with continuations.
      pad_id: the id of the padding.
      batch_size: packed rows per forward pass.

    Raises:
      DataError: a continuation has no token, or does not fit the model.
    """
    room = model.config.max_length - 1
    for _, continuation in pairs:
        if not 0 < len(continuation) <= room:
            raise DataError(f"harness: expected a continuation of 1 to {room} tokens, found {len(continuation)}")
    groups = [
        [list(continuation) for _, continuation in group]
        for _, group in itertools.groupby(pairs, lambda pair: tuple(pair[0]))
    ]
    contexts = [list(context) for context, _ in itertools.groupby(tuple(context) for context, _ in pairs)]
    rankings = [
        TokenizedRanking(context[-(room + 1 - max(map(len, group))) :], group)
        for context, group in zip(contexts, groups, strict=True)
    ]
    found: dict[int, list[tuple[float, bool]]] = {}
    for batch in outputs.answer_sums(model, params, rankings, _read, pad_id=pad_id, batch_size=batch_size):
        for i, (sums, likely) in batch:
            lengths = map(len, rankings[i].responses)
            found[i] = [(float(x), n == m) for x, n, m in zip(sums, likely, lengths, strict=True)]
    return [result for i in sorted(found) for result in found[i]]


def _read(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of each token, and 1 if it is the most likely one."""
    return losses.log_probs(logits, tokens), losses.is_most_likely(logits, tokens).astype(jnp.float32)


def windows(tokens: Sequence[int], start: int, max_length: int) -> Iterator[Pair]:
    """Splits a text of any length into contexts and continuations, in which each token is predicted once.

    The first window predicts max_length - 1 tokens after `start`, and the others as many after the token before them,
    except that the last one has all the context that fits.

    Args:
      tokens: of the text.
      start: a token that stands before the first, such as EOS.
      max_length: of context and continuation together.
    """
    size = max_length - 1
    before = [start, *tokens]
    for first in range(0, len(tokens), size):
        end = min(first + size, len(tokens))
        yield before[max(0, end - size) : first + 1], tokens[first:end]


def generate(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    stop: Sequence[str],
    temperature: float,
    batch_size: int,
) -> list[str]:
    """Samples a continuation of each prompt and cuts it at the first of the texts in `stop`.

    The beginning of a prompt that does not fit the model is dropped. See `outputs.sample_texts` for the arguments.

    Raises:
      DataError: a prompt is empty, or the model has no room for `max_tokens` and a prompt.
    """
    room = model.config.max_length - max_tokens
    if room < 1:
        raise DataError(
            f"harness: expected fewer than {model.config.max_length} tokens to generate, found {max_tokens}"
        )
    if not all(prompts):
        raise DataError("harness: expected a prompt to continue, found an empty one")
    fitting = [outputs.drop_beginning(tokenizer, prompt, room) for prompt in prompts]
    batches = outputs.sample_texts(
        model, params, tokenizer, fitting, max_tokens=max_tokens, batch_size=batch_size, temperature=temperature
    )
    texts = dict(itertools.chain.from_iterable(batches))
    return [_cut(texts[i], stop) for i in range(len(prompts))]


def _cut(text: str, stop: Sequence[str]) -> str:
    for end in filter(None, stop):
        text = text.partition(end)[0]
    return text
