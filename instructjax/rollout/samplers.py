"""Samples answers to prompts as texts, and compares them with a reward model and a reference policy.

Weights are arguments of the functions that are built here. Functions are kept, so that a program is compiled once
for all models of a shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.batch import Episodes, PromptBatch
from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.rollout import episode, sampling

Params = Any
# sampler(params, prompts, key) -> batches of (Episodes with B rows, n <= B texts)
Sampler = Callable[[Params, Sequence[str], jax.Array], Iterator[tuple[Episodes, list[str]]]]


@functools.cache
def make_sampler(
    model: LanguageModel,
    layout: Layout,
    *,
    temperature: float,
    batch_size: int,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampler:
    """Builds a compiled sampler of answers.

    Args:
      model: the language model; its weights are an argument of the sampler.
      layout: of prompts (at most P tokens) and responses (at most R).
      temperature: of the softmax; 0 takes the most likely token.
      batch_size: B, the number of prompts sampled at a time.
      top_k: only the k most likely tokens are drawn; 0 for all.
      top_p: only the most likely tokens are drawn that together have this probability; 1 for all.

    Returns:
      `sampler(params, prompts, key)`, which yields batches in the order of the prompts:
      Episodes of B rows, and the texts of the first n of them (n < B in the last
      batch). Row i of the whole list has the key fold_in(key, i), so an answer does not
      depend on the batch size.
    """

    @jax.jit
    def sample(params: Params, prompts: PromptBatch, keys: jax.Array) -> Episodes:
        choose = sampling.categorical(temperature, top_k, top_p) if temperature > 0 else sampling.greedy
        episodes, _ = sampling.sample(
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
        rows = pipeline.prompt_rows([Prompt(prompt=prompt) for prompt in prompts], layout)
        for number, batch in enumerate(pipeline.ordered_batches(rows, batch_size=batch_size)):
            first = number * batch_size
            episodes = sample(params, batch, sampling.row_keys(key, batch_size, first))
            yield episodes, texts(layout, episodes)[: len(prompts) - first]

    return sampler


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
