"""Samples responses: a prefill, then a while-loop that stops when every row is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from instructjax import losses
from instructjax.batch import Episodes, PromptBatch
from instructjax.models.cache import Cache, init_cache, repeat_rows
from instructjax.models.partitioning import constrain_rows
from instructjax.typing import AnyArray, Array, Index, Model, Params, TokenIds

AnyCache = TypeVar("AnyCache")  # any pytree
_Carry: TypeAlias = tuple[Array, Array, Array, Array, Array, AnyCache]  # step, tokens, log_probs, token, done, cache

# forward(tokens, segments, positions, cache) -> (logits, cache): appends tokens to the cache and returns the logits
# after the last of them.
Forward: TypeAlias = Callable[
    [Int[AnyArray, "B T"], Int[AnyArray, "B T"], Int[Array, "B T"], AnyCache], tuple[Float[Array, "B V"], AnyCache]
]

# choose(logits, keys, steps) -> (tokens, their log-probabilities): token number `step` of each row's response, with
# the row's own key.
Choose: TypeAlias = Callable[
    [Float[Array, "B V"], Key[Array, "B"], Int[Array, "B"]], tuple[Int[Array, "B"], Float[Array, "B"]]
]


def row_keys(key: Key[Array, ""], rows: int, first: Index = 0) -> Key[Array, "B"]:
    """Makes one key per row: fold_in(key, first + row).

    A row's tokens then depend on the key and the row's number in the global batch, not
    on its neighbors or on the layout of the batch over devices.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def categorical(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Choose:
    """Builds a `Choose` that draws from softmax(logits / temperature), with the step folded into the row's key.

    Args:
      temperature: above 0; 1 in PPO's rollouts.
      top_k: see `truncate`; 0 for all tokens, as in PPO's rollouts.
      top_p: see `truncate`; 1 for all tokens, as in PPO's rollouts.
    """

    def choose(logits: Array, keys: Array, steps: Array) -> tuple[Array, Array]:
        uniform = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, step)))(keys, steps)
        logits = logits / temperature
        if top_k or top_p < 1:
            logits = truncate(logits, top_k, top_p)
        tokens = quantile(logits, uniform)
        return tokens, losses.log_probs(logits, tokens)

    return choose


def truncate(logits: Float[AnyArray, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Sets the logits of unlikely tokens to -inf.

    A token stays if fewer than `top_k` tokens are more likely, and if the tokens that are more likely have together
    less than the probability `top_p` (Holtzman et al. 2020, section 3.1). Both are measured on all tokens, so neither
    acts before the other. Equally likely tokens stay together. The most likely token always stays.

    Args:
      logits: of the next token.
      top_k: 0 for no limit.
      top_p: above 0; 1 for no limit.
    """
    descending = -jnp.sort(-logits, axis=-1)
    limits = [descending[:, top_k - 1]] if 0 < top_k < logits.shape[-1] else []
    if top_p < 1:
        probabilities = jax.nn.softmax(descending, axis=-1)
        above = jnp.cumsum(probabilities, axis=-1) - probabilities  # the probability of all tokens before each
        limits.append(jnp.min(jnp.where(above < top_p, descending, jnp.inf), axis=-1))
    least = jnp.max(jnp.stack(limits), axis=0) if limits else jnp.full(logits.shape[:1], -jnp.inf)
    return jnp.where(logits >= least[:, None], logits, -jnp.inf)


def quantile(logits: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """Returns the first token whose cumulative probability exceeds `uniform`: inverse transform sampling.

    This needs one random number per row, while `jax.random.categorical` draws one per logit. A token of probability
    0 is never chosen.

    Args:
      logits: of the next token.
      uniform: a number from 0 to below 1 for each row.
    """
    rows, vocabulary = logits.shape
    # Two searches over about sqrt(V) entries each: first for a block of tokens, then within it.
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
    """Returns the first column whose running total exceeds the target, or else the first with the largest total."""
    last = totals[:, -1]
    return jnp.sum(totals <= jnp.minimum(target, jnp.nextafter(last, 0.0))[:, None], axis=1, dtype=jnp.int32)


def greedy(
    logits: Float[AnyArray, "B V"], keys: Key[Array, "B"] | None, steps: Int[Array, "B"] | None
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Takes each row's most likely token. A `Choose` without randomness: each token has log-probability 0."""
    del keys, steps
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros(logits.shape[0])


def positions_of(segments: Int[AnyArray, "B T"]) -> Int[Array, "B T"]:
    """Computes the positions in rows of one segment each: the exclusive cumulative sum of the mask."""
    return jnp.maximum(jnp.cumsum(segments > 0, axis=-1) - 1, 0).astype(jnp.int32)


def generate(
    forward: Forward[AnyCache],
    cache: AnyCache,
    prompts: PromptBatch,
    keys: Key[Array, "B"],
    choose: Choose,
    *,
    max_response: int,
    eos_id: TokenIds,
    pad_id: int,
    repeat: Callable[[AnyCache, int], AnyCache] | None = None,
) -> tuple[Episodes, Int[Array, ""]]:
    """Continues each prompt until EOS or `max_response` tokens, once or several times.

    Args:
      forward: the model with its cache; see `Forward`.
      cache: an empty cache for P + max_response tokens of each prompt.
      prompts: padded on the left.
      keys: one key per response: K times as many as prompts, and those of a prompt next to each other.
      choose: picks a token from the logits.
      max_response: R, the most tokens a response may have, EOS included.
      eos_id: ends a response, or several that do; it belongs to the response.
      pad_id: fills a row after its end.
      repeat: `repeat(cache, K)` repeats each row of the cache after the prefill; only needed if K > 1.

    Returns:
      Episodes with T = P + R, and the number of decoded tokens, including those of idle rows.
    """
    batch = keys.shape[0]

    def chosen(logits: Array, step: Array) -> tuple[Array, Array]:
        return choose(logits, keys, jnp.full(batch, step))

    positions = positions_of(prompts.segments)
    lengths = positions[:, -1] + 1
    logits, cache = forward(prompts.tokens, prompts.segments, positions, cache)
    if (samples := batch // prompts.tokens.shape[0]) > 1:
        assert repeat is not None
        cache = repeat(cache, samples)
        logits, lengths, prompts = jax.tree.map(
            lambda x: constrain_rows(jnp.repeat(x, samples, axis=0)), (logits, lengths, prompts)
        )
    token, log_prob = chosen(logits, jnp.zeros((), jnp.int32))
    tokens = jnp.full((batch, max_response), pad_id, jnp.int32).at[:, 0].set(token)
    log_probs = jnp.zeros((batch, max_response), log_prob.dtype).at[:, 0].set(log_prob)

    def running(carry: _Carry[AnyCache]) -> Array:
        step, _, _, _, done, _ = carry
        return (step < max_response) & ~jnp.all(done)

    def advance(carry: _Carry[AnyCache]) -> _Carry[AnyCache]:
        step, tokens, log_probs, token, done, cache = carry
        # Finished rows continue to compute, but their tokens are padding and never seen.
        segments = jnp.where(done, 0, 1)[:, None]
        logits, cache = forward(token[:, None], segments, (lengths + step - 1)[:, None], cache)
        token, log_prob = chosen(logits, step)
        token, log_prob = jnp.where(done, pad_id, token), jnp.where(done, 0.0, log_prob)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob[:, None], step, axis=1)
        return step + 1, tokens, log_probs, token, done | jnp.isin(token, jnp.asarray(eos_id)), cache

    start = (jnp.ones((), jnp.int32), tokens, log_probs, token, jnp.isin(token, jnp.asarray(eos_id)), cache)
    steps, tokens, log_probs, *_ = jax.lax.while_loop(running, advance, start)
    return episodes(prompts, tokens, log_probs, eos_id), (steps - 1) * batch


def episodes(
    prompts: PromptBatch, tokens: Int[AnyArray, "B R"], log_probs: Float[AnyArray, "B R"], eos_id: TokenIds
) -> Episodes:
    """Combines prompts and sampled tokens into episodes. Tokens after the first EOS must be padding."""
    is_last = jnp.isin(tokens, jnp.asarray(eos_id))
    before = jnp.cumsum(is_last, axis=1) - is_last  # EOS tokens strictly before each position
    # A row without EOS fills all R columns, so all padding comes after the first EOS.
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
    model: Model,
    params: Params,
    prompts: PromptBatch,
    keys: Key[Array, "B"],
    choose: Choose,
    *,
    max_response: int,
    eos_id: TokenIds,
    pad_id: int,
) -> tuple[Episodes, Int[Array, ""]]:
    """Calls `generate` with a `LanguageModel`, and computes logits only where they are needed.

    With K keys per prompt, its K responses share one prefill.
    """
    batch, width = prompts.tokens.shape
    params = model.decoding_params(params)

    def forward(tokens: AnyArray, segments: AnyArray, positions: Array, cache: Cache) -> tuple[Array, Cache]:
        hidden, cache = model.apply({"params": params}, tokens, segments, positions, cache, method="hidden")
        return model.apply({"params": params}, hidden[:, -1], method="unembed"), cache

    cache = init_cache(model.config, batch, width + max_response)
    ends: dict[str, Any] = {"max_response": max_response, "eos_id": eos_id, "pad_id": pad_id}
    return generate(forward, cache, prompts, keys, choose, **ends, repeat=repeat_rows)


def halved(width: int, count: int) -> tuple[int, ...]:
    """Returns `count` widths, increasing up to `width`, each half of the next, rounded up."""
    return tuple(-(-width // 2**i) for i in reversed(range(count)))


def sample_narrow(
    model: Model,
    params: Params,
    prompts: PromptBatch,
    keys: Key[Array, "B"],
    choose: Choose,
    *,
    widths: Sequence[int],
    max_response: int,
    eos_id: TokenIds,
    pad_id: int,
) -> tuple[Episodes, Int[Array, ""]]:
    """Samples the same tokens as `sample`, with prompts as narrow as the longest of them allows.

    Then the prefill computes, and the cache holds, fewer columns of padding.

    Args:
      model: see `sample`, also for all but `widths`.
      widths: increasing up to P. A program for each is compiled; the first that holds all prompts runs.
    """
    ends: dict[str, Any] = {"max_response": max_response, "eos_id": eos_id, "pad_id": pad_id}

    def at(width: int) -> Callable[[PromptBatch], tuple[Array, Array, Array]]:
        def run(prompts: PromptBatch) -> tuple[Array, Array, Array]:
            narrow = jax.tree.map(lambda x: x[:, -width:], prompts)
            found, decoded = sample(model, params, narrow, keys, choose, **ends)
            return found.tokens[:, width:], found.log_probs, decoded

        return run

    longest = jnp.max(jnp.sum(prompts.segments > 0, axis=1))
    first = jnp.searchsorted(jnp.asarray(widths), longest)
    tokens, log_probs, decoded = jax.lax.switch(first, [at(width) for width in widths], prompts)
    samples = keys.shape[0] // prompts.tokens.shape[0]
    repeated = jax.tree.map(lambda x: constrain_rows(jnp.repeat(x, samples, axis=0)), prompts)
    return episodes(repeated, tokens, log_probs, eos_id), decoded
