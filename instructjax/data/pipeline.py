"""From records to batches: rows in some order, cut into batches, each process its share.

Two choices make a stream, and they are made apart:

    rows     text_rows | prompt_rows | demonstrations.rows | ranked.rows
    batches  shuffled_batches (training: forever) | ordered_batches (evaluation: once)

Rows are a `grain.MapDataset`: made when they are asked for, in any order. `text_batches` are for training on text,
which is packed while it streams; demonstrations and rankings are packed batch by batch, see `packed.py`.

Batches are a `grain.IterDataset` of NumPy batches (`batch.py`). Its iterator has `get_state` and
`set_state`: a small JSON tree from which the stream goes on exactly where it was. `batch_size` counts the
rows of all processes, or, where sequences are packed, the sequences. In process order, their rows together are
one global batch, the same however many processes there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias, TypeVar

import grain
import jax
import numpy as np

from instructjax.batch import LMBatch, PromptBatch, RankingBatch
from instructjax.data import layouts
from instructjax.data.bin_packing import Windows
from instructjax.data.layouts import Layout
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, R, Ranking, Text
from instructjax.text.tokenizer import Tokenizer

Rows: TypeAlias = Any  # a grain.MapDataset
Batches: TypeAlias = Any  # a grain.IterDataset
Share = tuple[int, int]  # (i, n): part i of n of the rows of each global batch
Prompted = Demonstration | Prompt | Ranking  # the records of which a layout limits the length
Row = TypeVar("Row", LMBatch, RankingBatch, PromptBatch)

# The work is Python's: threads of a pool would only wait for each other.
READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def prompt_rows(records: Sequence[Prompt | Demonstration | Ranking], layout: Layout) -> Rows:
    """A row of a `PromptBatch` for each record; see `layouts.prompt_row`."""
    rows = indices(records)
    return rows.map(lambda index: layouts.prompt_row(records[index], layout))


def text_rows(records: Sequence[Text], tokenizer: Tokenizer, length: int) -> Rows:
    """Windows of text, packed in the order of the records, the last one padded; see `layouts.window_row`.

    All windows are made now and kept in memory, 16 bytes a token. They are for evaluation; training on text
    packs anew in each epoch, see `text_batches`.

    Args:
      records: documents.
      tokenizer: text to tokens.
      length: T, tokens of a window.
    """
    order = indices(records)
    return grain.MapDataset.source(list(Windows(records, order, tokenizer, length)))


def shuffled_batches(
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    share: Share = (0, 1),
    join: Callable[[Sequence[Any]], Any] | None = None,
) -> Batches:
    """Batches for training: every row once an epoch, in another order each epoch, forever.

    An epoch need not be a whole number of batches; the one at its end goes on with the next epoch.

    Args:
      rows: see above.
      batch_size: B, rows of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      share: (i, n), where this process reads part i of n; each yields B / n rows.
      join: makes a batch of a list of rows; None stacks them.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of n.
    """
    part = _local_batch_size(batch_size, share)
    # Cut first, then split_interleaved to the processes: so the global batch does not depend on their number.
    return (
        rows.seed(seed)
        .shuffle()
        .repeat()
        .batch(part, drop_remainder=True, batch_fn=join)[share[0] :: share[1]]
        .to_iter_dataset(READ_OPTIONS)
    )


def ordered_batches(rows: Rows, *, batch_size: int, share: Share = (0, 1)) -> Batches:
    """Batches for evaluation: every row once, in order.

    The last batch is filled up with copies of the last row that must not count: their weights are 0, or
    their answers not valid; of prompts, the first len(rows) count. So all batches have one shape, all
    processes have equally many, and no row is without a token.

    Args:
      rows: see above.
      batch_size: B, rows of a global batch.
      share: (i, n), where this process reads part i of n; each yields B / n rows.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of n.
    """
    part = _local_batch_size(batch_size, share)
    count = len(rows)
    whole = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    filled = whole.map(lambda i: rows[i] if i < count else _zero_weight(rows[count - 1]))
    return filled.batch(part)[share[0] :: share[1]].to_iter_dataset(READ_OPTIONS)


def text_batches(
    records: Sequence[Text],
    tokenizer: Tokenizer,
    *,
    length: int,
    batch_size: int,
    seed: int,
    share: Share = (0, 1),
) -> Batches:
    """Batches for pretraining: documents in a new order each epoch, packed into full windows, forever.

    Documents are tokenised as they come, each is ended by EOS, and one that does not fit into its window
    goes on in the next (Brown et al. 2020, appendix B). Each process packs all documents and keeps its own
    rows, so that global batches do not depend on the number of processes.

    Args:
      records: documents.
      tokenizer: text to tokens.
      length: T, tokens of a window.
      batch_size: B, windows of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      share: (i, n), where this process reads part i of n; each yields B / n windows.

    Returns:
      A stream of `LMBatch`, [B / n, T]; see `layouts.window_row`.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of n.
    """
    order = indices(records).seed(seed).shuffle().repeat()
    return _select_own_rows(Windows(records, order, tokenizer, length).batch(batch_size), batch_size, share)


def zip_batches(*streams: Batches) -> Batches:
    """Tuples of one batch from each stream, such as prompts with text for PPO-ptx."""
    return grain.experimental.ZipIterDataset(streams)


def prefetch(batches: Batches) -> Batches:
    """The same stream, whose next two batches a thread makes while this one is used.

    The iterator's state is that of the batches that were taken, not of those made ahead. Close it to end the thread.
    """
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


def steps(rows: Sequence[Any], batch_size: int, epochs: float = 1) -> int:
    """Batches of `shuffled_batches` that hold every row `epochs` times; the last may begin another epoch."""
    return math.ceil(len(rows) * epochs / batch_size)


def check_lengths(records: Sequence[Prompted], layout: Layout) -> None:
    """Tokenises every record, to learn before training that all of them fit.

    Raises:
      DataError: for the first record that does not; see `Layout.check`.
    """
    for record in records:
        layout.check(record)


def find_too_long(records: Sequence[Prompted], layout: Layout) -> list[int]:
    """The indices of the records that do not fit, to be left out as the paper does (appendix C).

    Raises:
      DataError: none fits; the message is that of the first record.
    """
    indices, first_error = [], None
    for index, record in enumerate(records):
        try:
            layout.check(record)
        except DataError as error:
            first_error = first_error or error
            indices.append(index)
    if first_error and len(indices) == len(records):
        raise first_error
    return indices


def without(records: Sequence[R], indices: Collection[int]) -> Sequence[R]:
    """The other records, read when asked for."""
    left_out = set(indices)
    return _Selection(records, [index for index in range(len(records)) if index not in left_out])


class _Selection(Sequence):
    """Some elements of a sequence."""

    def __init__(self, whole: Sequence, indices: Sequence[int]):
        self._whole = whole
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._whole[i] for i in self._indices[index]]
        return self._whole[self._indices[index]]


def indices(records: Sequence) -> grain.MapDataset:
    """The numbers of the records, in order.

    Raises:
      DataError: there is none.
    """
    if not len(records):
        raise DataError("expected at least one record to make batches of, found none")
    return grain.MapDataset.range(len(records))


def _select_own_rows(batches: Batches, batch_size: int, share: Share) -> Batches:
    """The rows of this process, of batches of them all."""
    part = _local_batch_size(batch_size, share)
    own = slice(share[0] * part, (share[0] + 1) * part)
    return batches.map(lambda batch: jax.tree.map(lambda x: x[own], batch))


def _local_batch_size(batch_size: int, share: Share) -> int:
    if batch_size < 1 or batch_size % share[1]:
        raise ConfigError(f"batch_size: expected a positive multiple of {share[1]} processes, found {batch_size}")
    return batch_size // share[1]


def _zero_weight(row: Row) -> Row:
    match row:
        case LMBatch():
            return row.replace(weights=np.zeros_like(row.weights))
        case RankingBatch():
            return row.replace(valid=np.zeros_like(row.valid))
        case PromptBatch():
            return row
