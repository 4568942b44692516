"""Sampling in which a row that is done takes the next prompt, so that no row waits for the longest response.

The rows decode together and write their tokens into the same slot of the cache, which is a ring: a row needs the
slots behind the current one only, as many as its prompt and its response have tokens. A prompt that takes over a row
is computed apart and written into the slots just before the current one; what the row held there before has another
segment, so that nobody sees it.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from instructjax.batch import Episodes, PromptBatch
from instructjax.models import partitioning
from instructjax.models.cache import Cache, init_cache, scatter_rows
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import sampling
from instructjax.rollout.sampling import Choose

Array = jax.Array
NOBODY = -1  # the prompt of a row that is done


@flax.struct.dataclass
class _Rows:
    """What decoding carries: B rows in G groups, each group with a queue of prompts of its own.

    Attributes:
      prompt: [B] int32, the prompt that each row continues, or NOBODY.
      count: [B] int32, how many tokens its response has.
      token: [B] int32, the last of them.
      length: [B] int32, tokens of its prompt.
      cache: of S slots; its length is the current slot.
      queue: [G] int32, how many prompts of each group have been taken.
      tokens: [N, R] int32, the responses.
      log_probs: [N, R].
      computed: int32 scalar, tokens that rows have decoded, those of rows that are done included.
    """

    prompt: Array
    count: Array
    token: Array
    length: Array
    cache: Cache
    queue: Array
    tokens: Array
    log_probs: Array
    computed: Array


def sample(
    model: LanguageModel,
    params: Any,
    prompts: PromptBatch,
    keys: Array,
    choose: Choose,
    *,
    rows: int,
    refill: int,
    max_response: int,
    eos_id: int,
    pad_id: int,
) -> tuple[Episodes, Array]:
    """Like `sampling.sample`, with the same tokens, in fewer rows than there are prompts.

    On a mesh every device has a queue of its own: its share of the prompts.

    Args:
      model: see `sampling.sample`, as for what is not here.
      params: its weights.
      prompts: [N, P], padded on the left.
      keys: [N].
      choose: how a token is picked.
      rows: B, prompts that are continued at a time, a divisor of N.
      refill: how many rows of a device are done before as many prompts take their places; more than it has are as
        many as it has. Their prompts are computed at once, always as many as this.
      max_response: R.
      eos_id: ends a response.
      pad_id: fills a row after its end.

    Returns:
      Episodes of N rows, and how many tokens were decoded, those of rows that were done included.
    """
    total, width = prompts.tokens.shape
    groups = partitioning.devices_of_rows(rows)
    share, slots = total // groups, width + max_response
    refill = min(refill, rows // groups)
    params = model.decoding_params(params)
    lengths = jnp.sum(prompts.segments > 0, axis=1)

    def grouped(x: Array) -> Array:
        return partitioning.constrain_rows(x.reshape(groups, -1, *x.shape[1:]))

    def choose_for(hidden: Array, prompt: Array, count: Array) -> tuple[Array, Array]:
        logits = model.apply({"params": params}, hidden[:, -1], method="unembed")
        return choose(logits, keys[prompt], count)

    def waiting(state: _Rows) -> Array:
        return share - state.queue

    def due(state: _Rows) -> Array:
        """Whether a group has as many rows that are done as take prompts at once, or as prompts are left."""
        done = jnp.sum(grouped(state.prompt == NOBODY), axis=1)
        return jnp.any((waiting(state) > 0) & (done >= jnp.minimum(refill, waiting(state))))

    def take(state: _Rows) -> _Rows:
        done = grouped(state.prompt == NOBODY)
        place = jnp.argsort(~done, axis=1, stable=True)[:, :refill]
        number = state.queue[:, None] + jnp.arange(refill)
        taken = jnp.take_along_axis(done, place, axis=1) & (number < share)
        # Prompts and rows by their numbers in the whole; those that are not taken are out of bounds, where nothing is
        # written.
        group = jnp.arange(groups)[:, None]
        prompt = jnp.where(taken, group * share + number, 0).reshape(-1)
        place = jnp.where(taken, group * (rows // groups) + place, rows).reshape(-1)
        into = jnp.where(taken.reshape(-1), prompt, total)
        segments = jnp.where(prompts.segments[prompt] > 0, prompt[:, None] + 1, 0)
        fresh = init_cache(model.config, groups * refill, width)
        hidden, fresh = model.apply(
            {"params": params},
            prompts.tokens[prompt],
            segments,
            sampling.positions_of(segments),
            fresh,
            method="hidden",
        )
        count = jnp.zeros_like(prompt)
        token, log_prob = choose_for(hidden, prompt, count)
        return state.replace(
            prompt=state.prompt.at[place].set(jnp.where(_ends(token, count), NOBODY, prompt), mode="drop"),
            count=state.count.at[place].set(1, mode="drop"),
            token=state.token.at[place].set(token, mode="drop"),
            length=state.length.at[place].set(lengths[prompt], mode="drop"),
            cache=scatter_rows(state.cache, place, (state.cache.length - width + jnp.arange(width)) % slots, fresh),
            queue=state.queue + jnp.sum(taken, axis=1),
            tokens=state.tokens.at[into, 0].set(token, mode="drop"),
            log_probs=state.log_probs.at[into, 0].set(log_prob, mode="drop"),
        )

    def _ends(token: Array, count: Array) -> Array:
        return (token == eos_id) | (count + 1 == max_response)

    def decode(state: _Rows) -> _Rows:
        running = state.prompt != NOBODY
        hidden, cache = model.apply(
            {"params": params},
            state.token[:, None],
            jnp.where(running, state.prompt + 1, 0)[:, None],
            (state.length + state.count - 1)[:, None],
            state.cache,
            method="hidden",
        )
        prompt = jnp.where(running, state.prompt, 0)
        token, log_prob = choose_for(hidden, prompt, state.count)
        into = jnp.where(running, prompt, total)
        return state.replace(
            prompt=jnp.where(running & ~_ends(token, state.count), prompt, NOBODY),
            count=state.count + running,
            token=token,
            cache=cache.replace(length=cache.length % slots),
            tokens=state.tokens.at[into, state.count].set(token, mode="drop"),
            log_probs=state.log_probs.at[into, state.count].set(log_prob, mode="drop"),
            computed=state.computed + rows,
        )

    def busy(state: _Rows) -> Array:
        return jnp.any(state.prompt != NOBODY)

    def turn(state: _Rows) -> _Rows:
        return jax.lax.while_loop(lambda state: busy(state) & ~due(state), decode, take(state))

    nothing = jnp.zeros(rows, jnp.int32)
    start = _Rows(
        prompt=nothing + NOBODY,
        count=nothing,
        token=nothing,
        length=nothing,
        cache=init_cache(model.config, rows, slots).replace(length=jnp.asarray(width % slots, jnp.int32)),
        queue=jnp.zeros(groups, jnp.int32),
        tokens=jnp.full((total, max_response), pad_id, jnp.int32),
        log_probs=jnp.zeros((total, max_response)),
        computed=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(lambda state: busy(state) | jnp.any(waiting(state) > 0), turn, start)
    return sampling.episodes(prompts, end.tokens, end.log_probs, eos_id), end.computed
