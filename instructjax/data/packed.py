"""Batches of whole sequences, packed into rows batch by batch.

A batch has a fixed number of sequences, and as many rows as they need: rounded up to one of a few numbers, as a
compiled step is made for each. To choose those, the orders of the whole run are read ahead, with lengths for sequences.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from instructjax.data import packing, pipeline
from instructjax.data.pipeline import Batches, Share

_MOST_SHAPES = 8
_MOST_EMPTY = 0.05  # share of rows that may be empty, if that many shapes can do it


@dataclasses.dataclass(frozen=True)
class Fit:
    """What all batches of a run have room for.

    Attributes:
      unit: the number of rows of a batch is a multiple of it.
      most: sequences in a row, at most.
    """

    unit: int
    most: int


def batches(
    lengths: Sequence[int],
    room: int,
    make: Callable[[Sequence[int], int], Any],
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
      make: `make(indices, most)`, a row with these sequences, maybe none, and room for `most` of them.
      batch_size: sequences, not rows, of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      steps: batches that are going to be read; one that is read after them may not fit.
      multiple: of which the number of rows of a global batch is one, so that devices and microbatches can share them.
      share: (i, n), where this process reads part i of n of the rows; n divides `multiple`.

    Returns:
      A stream of what `make` makes, stacked.
    """
    drawn = pipeline.shuffled_batches(
        grain.MapDataset.range(len(lengths)), batch_size=batch_size, seed=seed, join=list
    )  # of indices
    packed = [rows_of(lengths, indices, room) for indices in itertools.islice(drawn, steps)]
    fit = fitting(packed, multiple)

    def join(indices: Sequence[int]) -> Any:
        return stacked([make(row, fit.most) for row in rows_of(lengths, indices, room)], make([], fit.most), fit, share)

    return drawn.map(join)


def fitting(packed: Sequence[Sequence[Sequence[int]]], multiple: int) -> Fit:
    """The fewest shapes, 1 to 8, with which few rows are empty.

    Args:
      packed: the batches of a run, each a list of rows, each a list of sequences.
      multiple: see `batches`.
    """
    counts = np.array([len(rows) for rows in packed])
    for shapes in range(1, _MOST_SHAPES + 1):
        unit = -(-counts.max() // (shapes * multiple)) * multiple
        rounded = -(-counts // unit) * unit
        if counts.sum() >= (1 - _MOST_EMPTY) * rounded.sum():
            break
    return Fit(int(unit), max(len(row) for rows in packed for row in rows))


def stacked(rows: Sequence[Any], empty: Any, fit: Fit, share: Share = (0, 1)) -> Any:
    """This process's part of a batch: the rows, filled up with empty ones to a multiple of the unit."""
    count = -(-len(rows) // fit.unit) * fit.unit
    filled = [*rows, *[empty] * (count - len(rows))]
    part, parts = share
    own = filled[part * count // parts : (part + 1) * count // parts]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *own)


def rows_of(lengths: Sequence[int], indices: Sequence[int], room: int) -> list[list[int]]:
    """The rows of a batch, each a list of some of the indices.

    Args:
      lengths: of all sequences.
      indices: those of the batch.
      room: tokens of a row.
    """
    return [[indices[i] for i in row] for row in packing.first_fit_decreasing([lengths[i] for i in indices], room)]
