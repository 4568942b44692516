"""Samples answers to prompts as texts, and compares them with a reward model and a reference policy.

Weights are arguments of the functions that are built here. Functions are kept, so that a program is compiled once
for all models of a shape.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

from instructjax.batch import Episodes, PromptBatch
from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.models.partitioning import constrain_rows, even_rows, replicate
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.rollout import episode, refilling, sampling

QUEUE = 8  # batches at most whose prompts are in one queue of continuous batching

Params = Any
# sampler(params, prompts, key) -> batches of (Episodes with B rows, n <= B texts)
Sampler = Callable[[Params, Sequence[str], jax.Array], Iterator[tuple[Episodes, list[str]]]]


def prompt_keys(key: Key[jax.Array, ""], prompts: Sequence[str]) -> Key[jax.Array, "N"]:
    """Makes one key per prompt, from its text and the number of equal prompts before it.

    Both are folded into the key: 64 bits of the text's SHA-256, then the number. So an answer depends on the key, on
    its prompt and on how often it was asked before, and not on other prompts or their order.
    """
    asked: collections.Counter[str] = collections.Counter()
    words = np.zeros((len(prompts), 3), np.uint32)
    for row, prompt in zip(words, prompts, strict=True):
        row[:2] = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:8], "<u4")
        row[2] = asked[prompt]
        asked[prompt] += 1
    return jax.vmap(lambda row: functools.reduce(jax.random.fold_in, row, key))(jnp.asarray(words))


@functools.cache
def make_sampler(
    model: LanguageModel,
    layout: Layout,
    *,
    temperature: float,
    batch_size: int,
    top_k: int = 0,
    top_p: float = 1.0,
    refill: int = 0,
) -> Sampler:
    """Builds a compiled sampler of answers.

    Args:
      model: the language model; its weights are an argument of the sampler.
      layout: of prompts (at most P tokens) and responses (at most R).
      temperature: of the softmax; 0 takes the most likely token.
      batch_size: B, the number of prompts sampled at a time, rounded up as `even_rows` does.
      top_k: only the k most likely tokens are drawn; 0 for all.
      top_p: only the most likely tokens are drawn that together have this probability; 1 for all.
      refill: with continuous batching, a device is refilled once this many of its rows are idle; see `refilling.py`.
        0 samples one batch after the other.

    Returns:
      `sampler(params, prompts, key)`, which yields batches in the order of the N prompts: Episodes of B rows, and the
      texts of the first n of them (n < B in the last batch). With continuous batching, B is a multiple of the batch
      size. Row i of the whole list has the key fold_in(key, i), or key[i] if there is a key per prompt, such as those
      of `prompt_keys`. So an answer does not depend on the batch size or on `refill`.
    """

    @jax.jit
    def sample(params: Params, prompts: PromptBatch, keys: jax.Array) -> Episodes:
        choose = sampling.categorical(temperature, top_k, top_p) if temperature > 0 else sampling.greedy
        draw = (
            functools.partial(refilling.sample, rows=even_rows(batch_size), refill=refill)
            if refill
            else sampling.sample
        )
        episodes, _ = draw(
            model,
            params,
            constrain_rows(prompts),
            keys,
            choose,
            max_response=layout.max_response,
            eos_id=layout.eos_ids,
            pad_id=layout.tokenizer.pad_id,
        )
        return replicate(episodes)

    def sampler(params: Params, prompts: Sequence[str], key: jax.Array) -> Iterator[tuple[Episodes, list[str]]]:
        keys = key if key.ndim else sampling.row_keys(key, len(prompts))
        rows = pipeline.prompt_rows([Prompt(prompt=prompt) for prompt in prompts], layout)
        size = even_rows(batch_size)
        size *= _queue_length(-(-len(prompts) // size)) if refill else 1
        for number, batch in enumerate(pipeline.ordered_batches(rows, batch_size=size)):
            first = number * size
            # The last batch is filled up with copies of the last prompt.
            episodes = sample(params, batch, keys[jnp.minimum(first + jnp.arange(size), len(prompts) - 1)])
            yield episodes, texts(layout, episodes)[: len(prompts) - first]

    return sampler


def _queue_length(batches: int) -> int:
    """Returns how many batches share a queue, if all queues are as long and at most QUEUE: one shape is compiled."""
    return -(-batches // -(-batches // QUEUE))


def responses(episodes: Episodes) -> list[list[int]]:
    """Returns the tokens of each row's response, including its EOS, if it has one."""
    tokens, mask = jax.device_get((episode.response_tokens(episodes), episodes.response_mask > 0))
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


def texts(layout: Layout, episodes: Episodes) -> list[str]:
    """Returns each row's response as text, without EOS."""
    return [layout.decode(response) for response in responses(episodes)]


@functools.cache
def make_scorer(model: ScalarModel) -> Callable[[Params, Episodes], jax.Array]:
    """Builds a compiled `scorer(params, episodes) -> [B]`: the reward of each response."""

    @jax.jit
    def scorer(params: Params, episodes: Episodes) -> jax.Array:
        episodes = constrain_rows(episodes)
        return replicate(episode.score(model, params, episodes.tokens, episodes.segments, episodes.positions))

    return scorer


@functools.cache
def make_divergence(model: LanguageModel, temperature: float) -> Callable[[Params, Params, Episodes], jax.Array] | None:
    """Builds a compiled `divergence(params, reference, episodes) -> [B]`.

    It is log pi - log pi_ref, summed over the response, in nats. If the episodes were sampled from `params` at this
    temperature, this estimates the KL divergence from the reference at this temperature.

    Args:
      model: of both policies.
      temperature: of the softmax of both: the one that sampled.

    Returns:
      None at temperature 0: a policy without randomness has no finite KL divergence.
    """
    if temperature == 0:
        return None

    @jax.jit
    def divergence(params: Params, reference: Params, episodes: Episodes) -> jax.Array:
        episodes = constrain_rows(episodes)
        log_probs = episode.response_log_probs(model, params, episodes, temperature)
        ref_log_probs = episode.response_log_probs(model, reference, episodes, temperature)
        return replicate(jnp.sum(log_probs - ref_log_probs, axis=1))

    return divergence
