"""Packs the episodes of a batch into rows, inside a compiled program.

An episode is padded to the longest prompt and the longest response, and most are much shorter. Here several of them
share a row:

    padded    · · a b c 1 2 ·        packed    a b c 1 2 d 3 ·
              · · · · d 3 · ·                  e f 4 5 6 7 g 8
              · · · e f 4 5 6                  · · · · · · · ·
              · · · · g 8 · ·                  · · · · · · · ·

The number of rows stays the same, because it must be known before the lengths are: in the worst case every episode
fills its row. Rows without an episode come last in the order in which parts of a batch are computed, and parts that
have only such rows are skipped. So there is a single program for all lengths, and the host never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Int, PyTree, Shaped

from instructjax.batch import Episodes
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.rollout.episode import Experience
from instructjax.typing import AnyArray, Array, Tree


class Packing(flax.struct.PyTreeNode):
    """Where the tokens of padded rows [B, T] lie in packed rows [B, T].

    Attributes:
      cells: the cell of the packed rows, row * T + column, that holds each token of the padded rows; B * T on padding.
      sources: the cell of the padded rows that each cell of the packed rows is read from; B * T if it is empty.
    """

    cells: Int[Array, "B T"]
    sources: Int[Array, "B T"]

    def episodes(self, episodes: Episodes) -> Episodes:
        """Packs episodes. A segment is an episode, numbered by its padded row, from 1."""
        rows, length = self.sources.shape
        return Episodes(
            tokens=self._pack(episodes.tokens),
            segments=jnp.where(self.sources < rows * length, self.sources // length + 1, 0),
            positions=self._pack(episodes.positions),
            response_mask=self._pack_responses(episodes.response_mask),
            log_probs=self._pack_responses(episodes.log_probs),
            group=None,
        )

    def experience(self, experience: Experience) -> Experience:
        """Packs episodes with everything that an update needs of their tokens."""
        return Experience(
            episodes=self.episodes(experience.episodes),
            log_probs=self._pack_responses(experience.log_probs),
            ref_log_probs=self._pack_responses(experience.ref_log_probs),
            values=None if experience.values is None else self._pack_responses(experience.values),
            scores=None,
            advantages=self._pack_responses(experience.advantages),
            returns=None if experience.returns is None else self._pack_responses(experience.returns),
        )

    def unpack(self, tree: PyTree[Shaped[Array, "B T"]]) -> PyTree[Shaped[Array, "B T"]]:
        """Reads what packed rows have for each token of the padded rows; 0 on padding."""
        return jax.tree.map(lambda x: _read(x, self.cells), tree)

    def unpack_responses(self, tree: PyTree[Shaped[Array, "B T-1"]], size: int) -> PyTree[Shaped[Array, "B R"]]:
        """Reads what packed rows have for each token of the responses, R = `size`; 0 on padding."""
        return jax.tree.map(lambda x: self.unpack(jnp.pad(x, ((0, 0), (1, 0))))[:, -size:], tree)

    def _pack(self, x: Shaped[AnyArray, "B T"]) -> Shaped[Array, "B T"]:
        return _read(x, self.sources)

    def _pack_responses(self, x: Shaped[AnyArray, "B R"]) -> Shaped[Array, "B T-1"]:
        # A prompt has at least one token, so no response begins in the first column of a row.
        before = self.sources.shape[1] - x.shape[1]
        return self._pack(jnp.pad(x, ((0, 0), (before, 0))))[:, 1:]


def plan(segments: Int[AnyArray, "B T"], parts: int) -> Packing:
    """Packs rows that hold one episode each. Each episode, the longest first, goes into the first row with room for it.

    Args:
      segments: of the padded rows: 0 on padding.
      parts: the number of parts, a divisor of B, into which `split_interleaved` will split the packed rows. The first
        parts have the filled rows.
    """
    inside = replicate(jnp.asarray(segments) > 0)
    (rows, length), lengths = inside.shape, inside.sum(axis=1, dtype=jnp.int32)
    longest_first = jnp.argsort(-lengths, stable=True)

    def place(free: Array, size: Array) -> tuple[Array, tuple[Array, Array]]:
        row = jnp.argmax(free >= size).astype(jnp.int32)
        return free.at[row].add(-size), (row, length - free[row])

    _, placed = jax.lax.scan(place, jnp.full(rows, length, jnp.int32), lengths[longest_first])
    row, start = (jnp.zeros(rows, jnp.int32).at[longest_first].set(x) for x in placed)
    row = row % (rows // parts) * parts + row // (rows // parts)
    columns = start[:, None] + jnp.cumsum(inside, axis=1, dtype=jnp.int32) - 1
    nowhere = rows * length
    cells = jnp.where(inside, row[:, None] * length + columns, nowhere)
    numbers = jnp.arange(nowhere, dtype=jnp.int32)
    sources = jnp.full_like(numbers, nowhere).at[cells.reshape(-1)].set(numbers, mode="drop")
    return Packing(*constrain_rows((cells, sources.reshape(rows, length))))


def skip_empty(read: Callable[[Episodes], Tree]) -> Callable[[Episodes], Tree]:
    """Returns a function that calls `read` on rows that hold an episode, and otherwise returns zeros."""

    def read_or_skip(rows: Episodes) -> Tree:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read, rows))
        return jax.lax.cond(is_empty(rows), lambda _: nothing, read, rows)

    return read_or_skip


def is_empty(rows: Episodes) -> Array:
    """Returns whether rows hold no episode."""
    return ~jnp.any(rows.segments > 0)


def _read(x: Shaped[AnyArray, "B T"], cells: Int[Array, "B T"]) -> Shaped[Array, "B T"]:
    """Reads cells of an array whose rows may lie on other devices; 0 if there is no such cell."""
    return constrain_rows(jnp.take(replicate(jnp.asarray(x)).reshape(-1), cells, mode="fill", fill_value=0))
