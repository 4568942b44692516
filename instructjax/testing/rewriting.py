"""Rewrites batches without changing their meaning: more padding, other padding tokens, one segment per row."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import numpy as np

from instructjax.batch import Episodes, LMBatch, RankingBatch

B = TypeVar("B", LMBatch, RankingBatch, Episodes)


@functools.singledispatch
def padded(batch: Any, left: int, right: int, token: int) -> Any:
    """Widens the rows of a batch, and writes `token` into all of its padding.

    Args:
      batch: an `LMBatch`, a `RankingBatch` or `Episodes`.
      left: number of columns to add on the left; for episodes, before the prompt.
      right: number of columns to add on the right; for episodes, after the response.
      token: the token id of all padding, old and new.
    """
    raise TypeError(f"expected an LMBatch, a RankingBatch or Episodes, found {type(batch).__name__}")


@padded.register
def _(batch: LMBatch, left: int, right: int, token: int) -> LMBatch:
    return _retokened(jax.tree.map(functools.partial(_wider, left=left, right=right), batch), token)


@padded.register
def _(batch: RankingBatch, left: int, right: int, token: int) -> RankingBatch:
    names = "tokens", "segments", "branches", "positions"
    wide = {name: _wider(getattr(batch, name), left, right) for name in names}
    return _retokened(batch.replace(**wide, ends=np.asarray(batch.ends) + left), token)


@padded.register
def _(batch: Episodes, left: int, right: int, token: int) -> Episodes:
    wide = {name: _wider(getattr(batch, name), left, right) for name in ("tokens", "segments", "positions")}
    wide |= {name: _wider(getattr(batch, name), 0, right) for name in ("response_mask", "log_probs")}
    return _retokened(batch.replace(**wide), token)


@functools.singledispatch
def unpacked(batch: Any) -> list[Any]:
    """Splits a batch into batches of the same shapes with at most one segment per row.

    Args:
      batch: an `LMBatch` or a `RankingBatch`.
    """
    raise TypeError(f"expected an LMBatch or a RankingBatch, found {type(batch).__name__}")


@unpacked.register
def _(batch: LMBatch) -> list[LMBatch]:
    parts = []
    for number in range(1, int(np.max(batch.segments)) + 1):
        parts.append(jax.tree.map(functools.partial(_first, rows=_columns(batch, number)), batch))
    return [part.replace(segments=np.minimum(part.segments, 1)) for part in parts]


@unpacked.register
def _(batch: RankingBatch) -> list[RankingBatch]:
    names = "tokens", "segments", "branches", "positions"
    parts = []
    for number in range(1, batch.valid.shape[1] + 1):
        columns = _columns(batch, number)
        alone = {name: _first(getattr(batch, name), columns) for name in names}
        alone["segments"] = np.minimum(alone["segments"], 1)
        starts = np.array([taken[0] if len(taken) else 0 for taken in columns])
        answers = {name: np.zeros_like(getattr(batch, name)) for name in ("ends", "scores", "valid")}
        answers["valid"][:, 0] = np.asarray(batch.valid)[:, number - 1]
        answers["scores"][:, 0] = np.asarray(batch.scores)[:, number - 1]
        ends = np.asarray(batch.ends)[:, number - 1] - starts[:, None]
        answers["ends"][:, 0] = np.where(answers["valid"][:, 0], ends, 0)
        parts.append(batch.replace(**alone, **answers))
    return parts


def _columns(batch: LMBatch | RankingBatch, segment: int) -> list[np.ndarray]:
    """Returns the columns of a segment, row by row."""
    return [np.flatnonzero(row) for row in np.asarray(batch.segments) == segment]


def _first(array: Any, rows: list[np.ndarray]) -> np.ndarray:
    """Moves the given columns of each row to its start, followed by zeros."""
    array = np.asarray(array)
    out = np.zeros_like(array)
    for row, columns in enumerate(rows):
        out[row, : len(columns)] = array[row, columns]
    return out


def _wider(array: Any, left: int, right: int) -> np.ndarray:
    return np.pad(np.asarray(array), ((0, 0), (left, right)))


def _retokened(batch: B, token: int) -> B:
    tokens = np.asarray(batch.tokens)
    return batch.replace(tokens=np.where(np.asarray(batch.segments) > 0, tokens, tokens.dtype.type(token)))
