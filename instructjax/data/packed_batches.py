"""Batches of whole sequences, packed into rows batch by batch.

A batch has a fixed number of sequences, and as many rows as they need: rounded up to one of a few numbers, as a
compiled step is made for each. To choose those, the orders of the whole run are read ahead, with lengths for sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from instructjax.data import bin_packing, pipeline
from instructjax.data.pipeline import Batches, Share
from instructjax.errors import ConfigError

Item = TypeVar("Item")
Row = list[Item]

_MOST_EMPTY = 0.05  # share of rows that may be empty, where the most shapes can do it
_MOST_SHAPES, _STEPS_OF_A_SHAPE = 8, 200  # a step is compiled for each shape: a short run has few


def batches(
    lengths: Sequence[int],
    room: int,
    make: Callable[[Sequence[int]], Any],
    *,
    batch_size: int,
    seed: int,
    steps: int,
    multiple: int = 1,
    share: Share = (0, 1),
) -> Batches:
    """Batches for training: every sequence once an epoch, in another order each epoch, forever.

    Args:
      lengths: tokens of each sequence.
      room: tokens of a row.
      make: `make(indices)`, a row with these sequences, maybe none.
      batch_size: sequences, not rows, of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      steps: batches that are going to be read; see `stream`.
      multiple: see `stream`.
      share: (i, n), where this process reads part i of n of the rows.

    Returns:
      A stream of what `make` makes, stacked.

    Raises:
      ConfigError: n does not divide `multiple`.
    """
    order = grain.MapDataset.range(len(lengths))
    drawn = pipeline.shuffled_batches(order, batch_size=batch_size, seed=seed, join=list)
    return stream(drawn, drawn, lambda batch: pack_batch(lengths, batch, room), make, steps, multiple, share)


def stream(
    drawn: Batches,
    ahead: Batches,
    fitted: Callable[[list[Item]], list[Row]],
    make: Callable[[Row], Any],
    steps: int,
    multiple: int,
    share: Share,
) -> Batches:
    """Lists of items as batches of rows; each process makes its own rows only.

    Args:
      drawn: the lists.
      ahead: the same, or lists that need the same rows and are cheaper to read.
      fitted: the rows that a list needs.
      make: a row with these items, maybe none.
      steps: batches that are going to be read; the number of shapes is chosen for them.
      multiple: of which the number of rows of a global batch is one, so that devices and microbatches can share them.
      share: (i, n), where this process reads part i of n of the rows.
    """
    part, parts = share
    if multiple % parts:
        raise ConfigError(f"share: expected a number of processes that divides {multiple} rows, found {parts}")
    unit = _row_unit([len(fitted(batch)) for batch in itertools.islice(ahead, steps)], multiple)

    def join(batch: list[Item]) -> Any:
        rows = fitted(batch)
        count = -(-len(rows) // unit) * unit
        rows += [[] for _ in range(count - len(rows))]
        own = rows[part * count // parts : (part + 1) * count // parts]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *map(make, own))

    return drawn.map(join)


def pack_batch(lengths: Sequence[int], indices: Sequence[Any], room: int) -> list[list[Any]]:
    """The rows of a batch, each a list of some of the indices.

    Args:
      lengths: of all sequences.
      indices: those of the batch.
      room: tokens of a row.
    """
    return [[indices[i] for i in row] for row in bin_packing.first_fit_decreasing([lengths[i] for i in indices], room)]


def _row_unit(counts: Sequence[int] | np.ndarray, multiple: int) -> int:
    """What numbers of rows are rounded up to, so that few shapes have few empty rows."""
    counts = np.asarray(counts)
    for shapes in range(1, min(_MOST_SHAPES, 1 + len(counts) // _STEPS_OF_A_SHAPE) + 1):
        unit = -(-counts.max() // (shapes * multiple)) * multiple
        if counts.sum() >= (1 - _MOST_EMPTY) * (-(-counts // unit) * unit).sum():
            break
    return int(unit)
