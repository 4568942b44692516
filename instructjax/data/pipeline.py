"""Turns records into batches: rows in some order, divided into batches. Each process reads its share of each batch.

A stream is made by two independent choices:

    rows     text_rows | prompt_rows | demonstrations.rows | rankings.ranking_rows
    batches  shuffled_batches (training: forever) | ordered_batches (evaluation: once)

Rows are a `grain.MapDataset`: each row is made when it is read, in any order. Batches for training on text are an
exception: `text_batches` packs the documents while it streams. Demonstrations and rankings for training are packed
batch by batch; see `packed_batches.py`.

Batches are a `grain.IterDataset` of NumPy batches (`batch.py`). The `get_state` of its iterator returns a small JSON
tree, from which `set_state` resumes the stream exactly. `batch_size` counts the rows of all processes, or their
sequences if sequences are packed. A process reads the rows of its own devices (`batch.Share`), so the global batch does
not depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import grain
import jax
import numpy as np

from instructjax.batch import EVERY_ROW, LMBatch, PromptBatch, RankingBatch, Share
from instructjax.data import layouts, mixtures
from instructjax.data.bin_packing import Windows, read_window
from instructjax.data.layouts import Layout
from instructjax.data.mixtures import Mixture
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking
from instructjax.text.tokenizer import Tokenizer

Rows: TypeAlias = Any  # a grain.MapDataset
Batches: TypeAlias = Any  # a grain.IterDataset
Row = TypeVar("Row", LMBatch, RankingBatch, PromptBatch)

# The work is in Python, so the threads of a pool would only wait for each other.
READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def prompt_rows(records: Sequence[Prompt | Demonstration | Ranking], layout: Layout) -> Rows:
    """Returns a row of a `PromptBatch` for each record; see `layouts.prompt_row`."""
    rows = indices(records)
    return rows.map(lambda index: layouts.prompt_row(records[index], layout))


def numbered(rows: Rows) -> Rows:
    """Returns pairs of a row and its index, an int32 scalar, from which a batch's records can be found."""
    return rows.map_with_index(lambda index, row: (row, np.int32(index)))


def text_rows(documents: Sequence[np.ndarray], tokenizer: Tokenizer, length: int) -> Rows:
    """Returns windows of text for evaluation, packed in the order of the documents; see `layouts.window_row`.

    The last one is padded. For training, see `text_batches`, which packs the documents again in each epoch.

    Args:
      documents: arrays [n] of token ids; see `layouts.document_tokens`.
      tokenizer: made the tokens.
      length: T, tokens of a window.
    """
    windows = grain.MapDataset.source(list(Windows(documents, indices(documents), length)))
    return windows.map(lambda window: read_window(documents, window, tokenizer, length))


def shuffled_batches(
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    share: Share = EVERY_ROW,
    join: Callable[[Sequence[Any]], Any] | None = None,
    mixture: Mixture | None = None,
) -> Batches:
    """Returns batches for training: every row once per epoch, in a new order each epoch, forever.

    If an epoch is not a whole number of batches, its last batch continues with the rows of the next epoch.

    Args:
      rows: see the top of this file.
      batch_size: B, rows per global batch.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      share: the rows that this process reads.
      join: makes a batch from a list of rows; None stacks them.
      mixture: how often each source of rows is drawn; None for every row once per epoch.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of the parts.
    """
    own, join = _own_rows(batch_size, share), join or stack
    # Only numbers are shuffled, so a process makes no rows but its own.
    numbers = mixtures.order(len(rows), seed, mixture).batch(batch_size, drop_remainder=True)
    return numbers.map(lambda batch: join([rows[i] for i in batch[own].tolist()])).to_iter_dataset(READ_OPTIONS)


def ordered_batches(rows: Rows, *, batch_size: int, share: Share = EVERY_ROW) -> Batches:
    """Returns batches for evaluation: every row once, in order.

    The last batch is filled up with copies of the last row. All batches then have the same shape, all processes have
    the same number of batches, and every row has tokens. The copies do not count: their weights are 0, or their answers
    are not valid. Prompts have neither, so the caller must use the first len(rows) only.

    Args:
      rows: see the top of this file.
      batch_size: B, rows per global batch.
      share: the rows that this process reads.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of the parts.
    """
    own, count = _own_rows(batch_size, share), len(rows)

    def row(i: int) -> Any:
        return rows[i] if i < count else _zero_weight(rows[count - 1])

    order = grain.MapDataset.range(-(-count // batch_size) * batch_size).batch(batch_size)
    return order.map(lambda numbers: stack([row(i) for i in numbers[own].tolist()])).to_iter_dataset(READ_OPTIONS)


def text_batches(
    documents: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    *,
    length: int,
    batch_size: int,
    seed: int,
    share: Share = EVERY_ROW,
    mixture: Mixture | None = None,
) -> Batches:
    """Returns batches for pretraining: documents in a new order each epoch, packed into full windows, forever.

    Each document ends with EOS. A document that does not fit into its window continues in the next one (Brown et al.
    2020, appendix B). Every process packs the lengths of all documents and reads only its own windows, so that global
    batches do not depend on the number of processes.

    Args:
      documents: arrays [n] of token ids; see `layouts.document_tokens`.
      tokenizer: made the tokens.
      length: T, tokens of a window.
      batch_size: B, windows per global batch.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      share: the windows that this process reads.
      mixture: how often each source of documents is drawn; None for every document once per epoch.

    Returns:
      A stream of `LMBatch`, [B, T], or as many rows as `share` has; see `layouts.window_row`.

    Raises:
      ConfigError: `batch_size` is not a positive multiple of the parts.
    """
    own, order = _own_rows(batch_size, share).tolist(), mixtures.order(len(documents), seed, mixture)
    windows = Windows(documents, order, length).batch(batch_size, batch_fn=list)
    return windows.map(lambda batch: stack([read_window(documents, batch[i], tokenizer, length) for i in own]))


def zip_batches(*streams: Batches) -> Batches:
    """Zips streams: each item is a tuple of one batch from each, such as prompts and text for PPO-ptx."""
    return grain.experimental.ZipIterDataset(streams)


def prefetch(batches: Batches) -> Batches:
    """Prefetches two batches in a thread while the current one is used.

    The state of the iterator does not count batches that are prefetched but not yet taken. Close the iterator to stop
    the thread.
    """
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


def steps(rows: Sequence[Any], batch_size: int, epochs: float = 1) -> int:
    """Returns the number of `shuffled_batches` that cover `epochs` epochs. The last one may begin another epoch."""
    return math.ceil(len(rows) * epochs / batch_size)


def indices(records: Sequence) -> grain.MapDataset:
    """Returns a dataset of the indices of the records, in order.

    Raises:
      DataError: there are no records.
    """
    if not len(records):
        raise DataError("expected at least one record, found none")
    return grain.MapDataset.range(len(records))


def stack(rows: Sequence[Any]) -> Any:
    """Stacks rows into a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _own_rows(batch_size: int, share: Share) -> np.ndarray:
    if batch_size < 1 or batch_size % share.count:
        raise ConfigError(
            f"batch_size: expected a positive multiple of {share.count}, so that every device has as many rows, "
            f"found {batch_size}"
        )
    return share.rows(batch_size)


def _zero_weight(row: Row) -> Row:
    match row:
        case LMBatch():
            return row.replace(weights=np.zeros_like(row.weights))
        case RankingBatch():
            return row.replace(valid=np.zeros_like(row.valid))
        case PromptBatch():
            return row
