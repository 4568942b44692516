"""Sampling with continuous batching: an idle row takes the next prompt instead of waiting for the longest response.

The rows decode together and write their tokens into the same slot of the cache. The cache is a ring buffer: a row
needs only as many slots before the current one as its prompt and response have tokens. The prefill of a new prompt
is computed separately and written into the slots just before the current one. The row's older slots have another
segment, so they are never seen.

On a mesh every device has its own queue: its share of the prompts. Rows and prompts are numbered within their device,
so what is read and written stays there.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key, PyTree, Shaped

from instructjax.batch import Episodes, PromptBatch
from instructjax.models import partitioning
from instructjax.models.cache import Cache, init_cache, scatter_rows
from instructjax.rollout import sampling
from instructjax.rollout.sampling import Choose
from instructjax.typing import AnyArray, Array, Model, Params, TokenIds

NOBODY = -1  # the prompt of an idle row


class _Rows(flax.struct.PyTreeNode):
    """The state of the decoding loop: B rows in G groups, each with its own queue of prompts, N prompts in all.

    Attributes:
      prompt: number in its group of the prompt that each row continues, or NOBODY.
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """The loop over B rows and its parts, pure functions of the state; see `sample` for the attributes.

    Attributes:
      groups: G, the devices over which rows and prompts are sharded.
      refill: rows of a group that are prefilled at once.
    """

    model: Model
    params: Params
    prompts: PromptBatch
    keys: Key[Array, "N"]
    choose: Choose
    groups: int
    rows: int
    refill: int
    max_response: int
    eos_id: TokenIds

    @property
    def share(self) -> int:
        """The number of prompts of a group."""
        return len(self.prompts.tokens) // self.groups

    def run(self, pad_id: int) -> _Rows:
        """Returns the state after all prompts were continued."""
        (total, width), nothing = self.prompts.tokens.shape, jnp.zeros(self.rows, jnp.int32)
        cache = init_cache(self.model.config, self.rows, width + self.max_response)
        start = _Rows(
            prompt=nothing + NOBODY,
            count=nothing,
            token=nothing,
            length=nothing,
            cache=dataclasses.replace(cache, length=jnp.asarray(width, jnp.int32), empty=False),
            queue=jnp.zeros(self.groups, jnp.int32),
            tokens=jnp.full((total, self.max_response), pad_id, jnp.int32),
            log_probs=jnp.zeros((total, self.max_response)),
            computed=jnp.zeros((), jnp.int32),
        )
        return jax.lax.while_loop(lambda state: self.busy(state) | jnp.any(self.waiting(state) > 0), self.turn, start)

    def turn(self, state: _Rows) -> _Rows:
        """Refills idle rows, and decodes until they are to be refilled again."""
        return jax.lax.while_loop(lambda state: self.busy(state) & ~self.due(state), self.decode, self.take(state))

    def busy(self, state: _Rows) -> Array:
        """Returns whether a row continues a prompt."""
        return jnp.any(state.prompt != NOBODY)

    def waiting(self, state: _Rows) -> Int[Array, "G"]:
        """Returns how many prompts of each group are left."""
        return self.share - state.queue

    def due(self, state: _Rows) -> Array:
        """Returns whether a group should be refilled: enough rows are idle, or as many as prompts are left."""
        done = jnp.sum(self.grouped(state.prompt == NOBODY), axis=1)
        waiting = self.waiting(state)
        return jnp.any((waiting > 0) & (done >= jnp.minimum(self.refill, waiting)))

    def take(self, state: _Rows) -> _Rows:
        """Prefills the next prompts of each group, into its idle rows."""
        width, slots = self.prompts.tokens.shape[1], state.cache.segments.shape[1]
        done = self.grouped(state.prompt == NOBODY)
        place = jnp.argsort(~done, axis=1, stable=True)[:, : self.refill]
        number = state.queue[:, None] + jnp.arange(self.refill, dtype=jnp.int32)
        taken = jnp.take_along_axis(done, place, axis=1) & (number < self.share)
        # Rows and prompts that are not taken are out of bounds, so nothing is written for them.
        place, into = jnp.where(taken, place, self.rows), jnp.where(taken, number, self.share)
        number = jnp.where(taken, number, 0)
        prompt, given = number.reshape(-1), self.read(self.prompts, number)
        segments = jnp.where(given.segments > 0, prompt[:, None] + 1, 0)
        hidden, fresh = self.model.apply(
            {"params": self.params},
            given.tokens,
            segments,
            sampling.positions_of(segments),
            init_cache(self.model.config, self.groups * self.refill, width),
            method="hidden",
        )
        count = jnp.zeros_like(prompt)
        token, log_prob = self.choose_for(hidden, number, count)
        length = jnp.sum(given.segments > 0, axis=1, dtype=jnp.int32)
        return dataclasses.replace(
            state,
            prompt=self.write(state.prompt, place, jnp.where(self.ends(token, count), NOBODY, prompt)),
            count=self.write(state.count, place, count + 1),
            token=self.write(state.token, place, token),
            length=self.write(state.length, place, length),
            cache=scatter_rows(state.cache, place, (state.cache.length - width + jnp.arange(width)) % slots, fresh),
            queue=state.queue + jnp.sum(taken, axis=1, dtype=jnp.int32),
            tokens=self.write(state.tokens, into, token, count),
            log_probs=self.write(state.log_probs, into, log_prob, count),
        )

    def decode(self, state: _Rows) -> _Rows:
        """Computes the next token of each row."""
        running = state.prompt != NOBODY
        hidden, cache = self.model.apply(
            {"params": self.params},
            state.token[:, None],
            jnp.where(running, state.prompt + 1, 0)[:, None],
            (state.length + state.count - 1)[:, None],
            state.cache,
            method="hidden",
        )
        number = self.grouped(jnp.where(running, state.prompt, 0))
        token, log_prob = self.choose_for(hidden, number, state.count)
        into = self.grouped(jnp.where(running, state.prompt, self.share))
        return dataclasses.replace(
            state,
            prompt=jnp.where(running & ~self.ends(token, state.count), state.prompt, NOBODY),
            count=state.count + running,
            token=token,
            cache=dataclasses.replace(cache, length=cache.length % cache.segments.shape[1]),
            tokens=self.write(state.tokens, into, token, state.count),
            log_probs=self.write(state.log_probs, into, log_prob, state.count),
            computed=state.computed + self.rows,
        )

    def choose_for(self, hidden: Array, number: Int[Array, "G n"], count: Int[Array, "G*n"]) -> tuple[Array, Array]:
        """Picks token number `count` of the responses to these prompts of each group."""
        logits = self.model.apply({"params": self.params}, hidden[:, -1], method="unembed")
        return self.choose(logits, self.read(self.keys, number), count)

    def ends(self, token: Array, count: Array) -> Array:
        """Returns whether a response ends with this token."""
        return jnp.isin(token, jnp.asarray(self.eos_id)) | (count + 1 == self.max_response)

    def grouped(self, x: AnyArray) -> Array:
        """Returns rows [B, ...] by group, [G, B / G, ...]."""
        return partitioning.constrain_rows(x.reshape(self.groups, -1, *x.shape[1:]))

    def read(self, tree: PyTree[Shaped[AnyArray, "..."]], index: Int[Array, "G n"]) -> PyTree[Shaped[Array, "..."]]:
        """Reads rows of each group, [G n, ...]."""

        def rows(x: AnyArray) -> Array:
            found = jax.vmap(lambda x, index: x[index])(self.grouped(x), index)
            return partitioning.constrain_rows(found.reshape(-1, *found.shape[2:]))

        return jax.tree.map(rows, tree)

    def write(self, into: Array, index: Int[Array, "G n"], values: Array, column: Array | None = None) -> Array:
        """Writes values [G n] to rows of each group, at a column of each row if the rows have columns."""
        places = (index,) if column is None else (index, self.grouped(column))

        def put(into: Array, values: Array, *places: Array) -> Array:
            return into.at[places].set(values, mode="drop")

        return jax.vmap(put)(self.grouped(into), self.grouped(values), *places).reshape(into.shape)


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
    eos_id: TokenIds,
    pad_id: int,
) -> tuple[Episodes, Int[Array, ""]]:
    """Samples the same tokens as `sampling.sample`, with fewer rows than prompts.

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
    groups = partitioning.devices_of_rows(rows)
    loop = _Loop(
        model=model,
        params=model.decoding_params(params),
        prompts=prompts,
        keys=keys,
        choose=choose,
        groups=groups,
        rows=rows,
        refill=min(refill, rows // groups),
        max_response=max_response,
        eos_id=eos_id,
    )
    end = loop.run(pad_id)
    return sampling.episodes(prompts, end.tokens, end.log_probs, eos_id), end.computed
