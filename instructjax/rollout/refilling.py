"""Sampling with continuous batching: an idle row takes the next prompt instead of waiting for the longest response.

The rows decode together and write their tokens into the same slot of the cache. The cache is a ring buffer: a row
needs only as many slots before the current one as its prompt and response have tokens. The prefill of a new prompt
is computed separately and written into the slots just before the current one. The row's older slots have another
segment, so they are never seen.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from instructjax.batch import Episodes, PromptBatch
from instructjax.models import partitioning
from instructjax.models.cache import Cache, init_cache, scatter_rows
from instructjax.rollout import sampling
from instructjax.rollout.sampling import Choose
from instructjax.typing import AnyArray, Array, Model, Params

NOBODY = -1  # the prompt of an idle row


class _Rows(flax.struct.PyTreeNode):
    """The state of the decoding loop: B rows in G groups, each with its own queue of prompts, N prompts in all.

    Attributes:
      prompt: number of the prompt that each row continues, or NOBODY.
      count: number of tokens of its response so far.
      token: the last of them.
      length: number of tokens of its prompt.
      cache: a ring buffer; its length is the current slot.
      queue: number of prompts of each group that have been taken.
      tokens: the responses.
      log_probs: of the tokens, as drawn.
      computed: number of decoded tokens, including those of idle rows.
    """

    prompt: Int[Array, "B"]
    count: Int[Array, "B"]
    token: Int[Array, "B"]
    length: Int[Array, "B"]
    cache: Cache
    queue: Int[Array, "G"]
    tokens: Int[Array, "N R"]
    log_probs: Float[Array, "N R"]
    computed: Int[Array, ""]


def sample(
    model: Model,
    params: Params,
    prompts: PromptBatch,
    keys: Key[Array, "N"],
    choose: Choose,
    *,
    rows: int,
    refill: int,
    max_response: int,
    eos_id: int,
    pad_id: int,
) -> tuple[Episodes, Int[Array, ""]]:
    """Samples the same tokens as `sampling.sample`, with fewer rows than prompts.

    On a mesh every device has its own queue: its share of the prompts.

    Args:
      model: the language model.
      params: its weights.
      prompts: N prompts, padded on the left.
      keys: one key per prompt.
      choose: picks a token from the logits.
      rows: B, the number of prompts that are continued at a time; a divisor of N.
      refill: refills a device once this many of its rows are idle, or all of them if it has fewer. Each prefill
        computes this many prompts at once.
      max_response: R.
      eos_id: ends a response.
      pad_id: fills a row after its end.

    Returns:
      Episodes of N rows, and the number of decoded tokens, including those of idle rows.
    """
    total, width = prompts.tokens.shape
    groups = partitioning.devices_of_rows(rows)
    share, slots = total // groups, width + max_response
    refill = min(refill, rows // groups)
    params = model.decoding_params(params)
    lengths = jnp.sum(prompts.segments > 0, axis=1, dtype=jnp.int32)

    def grouped(x: AnyArray) -> Array:
        return partitioning.constrain_rows(x.reshape(groups, -1, *x.shape[1:]))

    def choose_for(hidden: Array, prompt: Array, count: Array) -> tuple[Array, Array]:
        logits = model.apply({"params": params}, hidden[:, -1], method="unembed")
        return choose(logits, keys[prompt], count)

    def waiting(state: _Rows) -> Array:
        return share - state.queue

    def due(state: _Rows) -> Array:
        """Returns whether a group should be refilled: enough rows are idle, or as many as prompts are left."""
        done = jnp.sum(grouped(state.prompt == NOBODY), axis=1)
        return jnp.any((waiting(state) > 0) & (done >= jnp.minimum(refill, waiting(state))))

    def take(state: _Rows) -> _Rows:
        done = grouped(state.prompt == NOBODY)
        place = jnp.argsort(~done, axis=1, stable=True)[:, :refill]
        number = state.queue[:, None] + jnp.arange(refill, dtype=jnp.int32)
        taken = jnp.take_along_axis(done, place, axis=1) & (number < share)
        # Numbers of prompts and rows in the global batch. Those that are not taken are out of bounds, so nothing is
        # written for them.
        group = jnp.arange(groups, dtype=jnp.int32)[:, None]
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
        return dataclasses.replace(
            state,
            prompt=state.prompt.at[place].set(jnp.where(_ends(token, count), NOBODY, prompt), mode="drop"),
            count=state.count.at[place].set(1, mode="drop"),
            token=state.token.at[place].set(token, mode="drop"),
            length=state.length.at[place].set(lengths[prompt], mode="drop"),
            cache=scatter_rows(state.cache, place, (state.cache.length - width + jnp.arange(width)) % slots, fresh),
            queue=state.queue + jnp.sum(taken, axis=1, dtype=jnp.int32),
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
        return dataclasses.replace(
            state,
            prompt=jnp.where(running & ~_ends(token, state.count), prompt, NOBODY),
            count=state.count + running,
            token=token,
            cache=dataclasses.replace(cache, length=cache.length % slots),
            tokens=state.tokens.at[into, state.count].set(token, mode="drop"),
            log_probs=state.log_probs.at[into, state.count].set(log_prob, mode="drop"),
            computed=state.computed + rows,
        )

    def busy(state: _Rows) -> Array:
        return jnp.any(state.prompt != NOBODY)

    def turn(state: _Rows) -> _Rows:
        return jax.lax.while_loop(lambda state: busy(state) & ~due(state), decode, take(state))

    nothing = jnp.zeros(rows, jnp.int32)
    cache = init_cache(model.config, rows, slots)
    start = _Rows(
        prompt=nothing + NOBODY,
        count=nothing,
        token=nothing,
        length=nothing,
        cache=dataclasses.replace(cache, length=jnp.asarray(width % slots, jnp.int32), empty=False),
        queue=jnp.zeros(groups, jnp.int32),
        tokens=jnp.full((total, max_response), pad_id, jnp.int32),
        log_probs=jnp.zeros((total, max_response)),
        computed=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(lambda state: busy(state) | jnp.any(waiting(state) > 0), turn, start)
    return sampling.episodes(prompts, end.tokens, end.log_probs, eos_id), end.computed
