"""Sampling responses: prefill, then a while-loop that stops when every row is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.batch import Episodes, PromptBatch
from instructjax.models.cache import init_cache
from instructjax.models.transformer import LanguageModel

Array = jax.Array
Cache = Any

# forward(tokens [B, t], segments [B, t], positions [B, t], cache) -> (logits [B, V], cache):
# appends t tokens to the cache and returns the logits after the last of them.
Forward = Callable[[Array, Array, Array, Cache], tuple[Array, Cache]]

# choose(logits [B, V], keys [B], steps [B]) -> (tokens [B], the log-probability [B] that each had): token number
# `step` of each row's response, with the row's own key.
Choose = Callable[[Array, Array, Array], tuple[Array, Array]]


def row_keys(key: Array, rows: int, first: int | Array = 0) -> Array:
    """One key per row, [rows]: fold_in(key, first + row).

    A row's tokens then depend on the key and the row's number in the global batch, not
    on its neighbours or on how the batch is laid out over devices.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def categorical(temperature: float = 1.0) -> Choose:
    """Draws each row's token from softmax(logits / temperature), with the row's key and the step folded in.

    Args:
      temperature: 1 in PPO's rollouts; above 0.
    """

    def choose(logits: Array, keys: Array, steps: Array) -> tuple[Array, Array]:
        uniform = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, step)))(keys, steps)
        tokens = quantile(logits / temperature, uniform)
        return tokens, losses.log_probs(logits / temperature, tokens)

    return choose


def quantile(logits: Array, uniform: Array) -> Array:
    """The token at which the cumulative probability of those up to it exceeds a number: inverse transform sampling.

    A number for each row, where `jax.random.categorical` draws one for each logit. A token of probability 0 is
    never chosen.

    Args:
      logits: [B, V] float.
      uniform: [B], from 0 to below 1.

    Returns:
      [B] int32.
    """
    rows, vocabulary = logits.shape
    # Two searches among some sqrt(V), first for a block of tokens and then in it.
    size = 2 ** math.ceil(math.log2(vocabulary) / 2)
    logits = jnp.pad(logits, ((0, 0), (0, -vocabulary % size)), constant_values=-jnp.inf)
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True)).reshape(rows, -1, size)
    totals = jnp.cumsum(jnp.sum(weights, axis=2), axis=1)
    target = uniform * totals[:, -1]
    block = _first_above(totals, target)[:, None]
    before = jnp.take_along_axis(jnp.pad(totals, ((0, 0), (1, 0))), block, axis=1)[:, 0]
    weights = jnp.take_along_axis(weights, block[:, :, None], axis=1)[:, 0]
    return block[:, 0] * size + _first_above(jnp.cumsum(weights, axis=1), target - before)


def _first_above(totals: Array, target: Array) -> Array:
    """The first column of rising totals [B, N] that is above the target [B], or else the first of the greatest."""
    last = totals[:, -1]
    return jnp.sum(totals <= jnp.minimum(target, jnp.nextafter(last, 0.0))[:, None], axis=1, dtype=jnp.int32)


def greedy(logits: Array, keys: Array, steps: Array) -> tuple[Array, Array]:
    """Takes each row's most likely token: a `Choose` without randomness, so that each is certain."""
    del keys, steps
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[0])


def positions_of(segments: Array) -> Array:
    """Positions [B, T] of rows with one segment each: the exclusive cumulative sum of the mask."""
    return jnp.maximum(jnp.cumsum(segments > 0, axis=-1) - 1, 0).astype(jnp.int32)


def generate(
    forward: Forward,
    cache: Cache,
    prompts: PromptBatch,
    keys: Array,
    choose: Choose,
    *,
    max_response: int,
    eos_id: int,
    pad_id: int,
) -> tuple[Episodes, Array]:
    """Continues each prompt until EOS or `max_response` tokens.

    Args:
      forward: the model with its cache; see `Forward`.
      cache: an empty cache for P + max_response tokens.
      prompts: [B, P], padded on the left.
      keys: [B], of each row.
      choose: how a token is picked from the logits.
      max_response: R, the most tokens a response may have, EOS included.
      eos_id: ends a response; it belongs to the response.
      pad_id: fills a row after its end.

    Returns:
      Episodes with T = P + R; `response_mask` covers the response and its EOS. And how many tokens were decoded,
      those of rows that were done included.
    """
    batch = prompts.tokens.shape[0]

    def chosen(logits, step):
        return choose(logits, keys, jnp.full(batch, step))

    positions = positions_of(prompts.segments)
    lengths = positions[:, -1] + 1
    logits, cache = forward(prompts.tokens, prompts.segments, positions, cache)
    token, log_prob = chosen(logits, jnp.zeros((), jnp.int32))
    tokens = jnp.full((batch, max_response), pad_id, jnp.int32).at[:, 0].set(token)
    log_probs = jnp.zeros((batch, max_response)).at[:, 0].set(log_prob)

    def running(carry):
        step, _, _, _, done, _ = carry
        return (step < max_response) & ~jnp.all(done)

    def advance(carry):
        step, tokens, log_probs, token, done, cache = carry
        # Rows that are done go on computing; as padding, nobody sees what they compute.
        segments = jnp.where(done, 0, 1)[:, None]
        logits, cache = forward(token[:, None], segments, (lengths + step - 1)[:, None], cache)
        token, log_prob = chosen(logits, step)
        token, log_prob = jnp.where(done, pad_id, token), jnp.where(done, 0.0, log_prob)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob[:, None], step, axis=1)
        return step + 1, tokens, log_probs, token, done | (token == eos_id), cache

    start = (jnp.ones((), jnp.int32), tokens, log_probs, token, token == eos_id, cache)
    steps, tokens, log_probs, *_ = jax.lax.while_loop(running, advance, start)
    return episodes(prompts, tokens, log_probs, eos_id), (steps - 1) * batch


def episodes(prompts: PromptBatch, tokens: Array, log_probs: Array, eos_id: int) -> Episodes:
    """Prompts [B, P] and sampled tokens [B, R], whatever stands behind the first EOS, as Episodes."""
    ended = jnp.cumsum(tokens == eos_id, axis=1)
    before = ended - (tokens == eos_id)  # EOS tokens strictly before each position
    # A row without EOS fills all R columns, so what follows the first EOS is all its padding.
    response_mask = before == 0
    segments = jnp.concatenate([prompts.segments, response_mask.astype(jnp.int32)], axis=1)
    return Episodes(
        tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
        segments=segments,
        positions=positions_of(segments),
        response_mask=response_mask.astype(jnp.float32),
        log_probs=log_probs,
        group=jnp.arange(tokens.shape[0], dtype=jnp.int32),
    )


def sample(
    model: LanguageModel,
    params: Any,
    prompts: PromptBatch,
    keys: Array,
    choose: Choose,
    *,
    max_response: int,
    eos_id: int,
    pad_id: int,
) -> tuple[Episodes, Array]:
    """`generate` with a `LanguageModel`, which computes logits only where they are needed."""
    batch, width = prompts.tokens.shape
    params = model.decoding_params(params)

    def forward(tokens, segments, positions, cache):
        hidden, cache = model.apply({"params": params}, tokens, segments, positions, cache, method="hidden")
        return model.apply({"params": params}, hidden[:, -1], method="unembed"), cache

    cache = init_cache(model.config, batch, width + max_response)
    return generate(forward, cache, prompts, keys, choose, max_response=max_response, eos_id=eos_id, pad_id=pad_id)
