"""Makes batches of whole sequences, packed into rows batch by batch.

A batch has a fixed number of sequences and as many rows as they need. A step is compiled for each number of rows, so
the number is rounded up to one of a few values. These values are chosen before the first batch: the order of the whole
run is read ahead, and the lengths of the sequences give the number of rows of every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import numpy as np

from instructjax.batch import EVERY_ROW, Share
from instructjax.data import bin_packing, pipeline
from instructjax.data.mixtures import Mixture
from instructjax.data.pipeline import Batches
from instructjax.errors import ConfigError

Item = TypeVar("Item")
Row = list[Item]

_MAX_EMPTY = 0.05  # share of rows that may be empty, if _MAX_SHAPES are enough for that
_MAX_SHAPES, _MIN_STEPS_PER_SHAPE = 8, 200  # each shape is compiled, so a short run has fewer


def batches(
    lengths: Sequence[int],
    capacity: int,
    make_row: Callable[[Sequence[int]], Any],
    *,
    batch_size: int,
    seed: int,
    steps: int,
    multiple: int = 1,
    share: Share = EVERY_ROW,
    mixture: Mixture | None = None,
) -> Batches:
    """Returns batches for training: every sequence once per epoch, in a new order each epoch, forever.

    Args:
      lengths: tokens of each sequence.
      capacity: tokens of a row.
      make_row: `make_row(indices)` returns a row with these sequences, possibly none.
      batch_size: sequences (not rows) per global batch.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      steps: number of batches that will be read; see `stream`.
      multiple: see `stream`.
      share: the rows that this process reads.
      mixture: how often each source of sequences is drawn; None for every sequence once per epoch.

    Returns:
      A stream of stacked rows.

    Raises:
      ConfigError: `multiple` is not a multiple of the parts of `share`.
    """
    order = grain.MapDataset.range(len(lengths))
    indices = pipeline.shuffled_batches(order, batch_size=batch_size, seed=seed, join=list, mixture=mixture)

    def pack(batch: Sequence[int]) -> list[list[int]]:
        return pack_batch(lengths, batch, capacity)

    return stream(indices, pack, make_row, steps, multiple, share)


def stream(
    items: Batches,
    pack: Callable[[list[Item]], list[Row]],
    make_row: Callable[[Row], Any],
    steps: int,
    multiple: int,
    share: Share,
) -> Batches:
    """Turns lists of items into batches of rows. Each process makes only its own rows.

    Args:
      items: a stream of lists, one per batch. It is also read ahead once.
      pack: divides a list of items into rows.
      make_row: makes a row from a list of items, possibly none.
      steps: number of batches that will be read. More steps allow more shapes.
      multiple: the number of rows per global batch is rounded up to a multiple of this, so that it divides over devices
        and microbatches.
      share: the rows that this process reads.

    Raises:
      ConfigError: `multiple` is not a multiple of the parts of `share`.
    """
    if multiple % share.count:
        raise ConfigError(f"share: expected a number of parts that divides {multiple} rows, found {share.count}")
    unit = _row_unit([len(pack(batch)) for batch in itertools.islice(items, steps)], multiple)

    def join(batch: list[Item]) -> Any:
        rows = pack(batch)
        count = -(-len(rows) // unit) * unit
        rows += [[] for _ in range(count - len(rows))]
        return pipeline.stack([make_row(rows[i]) for i in share.rows(count)])

    return items.map(join)


def pack_batch(lengths: Sequence[int], indices: Sequence[Any], capacity: int) -> list[list[Any]]:
    """Packs the sequences of a batch into rows. Each row is a list of indices.

    Args:
      lengths: tokens of each sequence of the whole set.
      indices: the sequences of the batch.
      capacity: tokens of a row.
    """
    rows = bin_packing.first_fit_decreasing([lengths[i] for i in indices], capacity)
    return [[indices[i] for i in row] for row in rows]


def _row_unit(counts: Sequence[int] | np.ndarray, multiple: int) -> int:
    """Returns a unit to whose multiples the numbers of rows are rounded up, with few shapes and few empty rows.

    Args:
      counts: the number of rows that each batch needs.
      multiple: the unit is a multiple of this.
    """
    counts = np.asarray(counts)
    for shapes in range(1, min(_MAX_SHAPES, 1 + len(counts) // _MIN_STEPS_PER_SHAPE) + 1):
        unit = -(-counts.max() // (shapes * multiple)) * multiple
        if counts.sum() >= (1 - _MAX_EMPTY) * (-(-counts // unit) * unit).sum():
            break
    return int(unit)
