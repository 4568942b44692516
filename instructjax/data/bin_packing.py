"""Packs tokens into rows.

Documents are joined and cut into windows; this stream can be resumed at any window. Sequences that must stay whole are
packed into rows that have room for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import grain
import numpy as np

from instructjax.batch import LMBatch
from instructjax.data import layouts
from instructjax.text.tokenizer import Tokenizer

Window: TypeAlias = list[tuple[int, int, int]]  # the parts of documents that it consists of: index, start, stop


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs sequences into rows. Each sequence, the longest first, goes into the first row that has room for it.

    Args:
      lengths: tokens of each sequence, at most `capacity`.
      capacity: tokens of a row.

    Returns:
      The rows. Each row is a list of indices into `lengths`.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((i for i, free in enumerate(left) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(capacity)
        rows[row].append(index)
        left[row] -= lengths[index]
    return rows


def next_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs sequences in order. Each goes into the last row or a new one; see `first_fit_decreasing`."""
    rows: list[list[int]] = []
    left = 0
    for index, length in enumerate(lengths):
        if length > left or not rows:
            rows.append([])
            left = capacity
        rows[-1].append(index)
        left -= length
    return rows


class Windows(grain.IterDataset):
    """A stream of windows: documents are joined end to end and cut.

        documents   a b c $   d e f $   g h $
        windows     a b c $ d e   f $ g h $ ·          of 6 tokens

    A window is a list of the parts of documents that it consists of, (index, start, stop). The tokens are read by
    `read_window`, so a process reads only those of its own windows. Only the last window of a finite stream is shorter.
    The state of the iterator says where the next window begins: {"document": how many documents of the order come
    before, "offset": the token in the document}.

    Grain's own `ConcatThenSplitIterDataset` cannot be used. Checkpoints store the state as JSON, and its state does not
    survive JSON (grain 0.2.18). An empty slice, (-1, -1), is read back as a list and mistaken for the rest of a
    document, so that a document is lost.
    """

    def __init__(self, documents: Sequence[np.ndarray], order: grain.MapDataset, length: int):
        """Creates the stream.

        Args:
          documents: arrays [n] of token ids, of which only the lengths are read.
          order: the indices of the documents to pack, in order.
          length: T, tokens of a window.
        """
        super().__init__()
        self._documents, self._order, self._length = documents, order, length

    def __iter__(self) -> grain.DatasetIterator:
        return _WindowIterator(self._documents, self._order, self._length)


class _WindowIterator(grain.DatasetIterator):
    def __init__(self, documents: Sequence[np.ndarray], order: grain.MapDataset, length: int):
        super().__init__()
        self._documents, self._order, self._length = documents, order, length
        self._number, self._offset = 0, 0

    def __next__(self) -> Window:
        parts, missing = [], self._length
        while missing and self._number < len(self._order):
            index = self._order[self._number]
            size = len(self._documents[index])
            stop = min(self._offset + missing, size)
            parts.append((index, self._offset, stop))
            missing -= stop - self._offset
            self._number, self._offset = (self._number + 1, 0) if stop == size else (self._number, stop)
        if not parts:
            raise StopIteration
        return parts

    def get_state(self) -> dict[str, int]:
        return {"document": self._number, "offset": self._offset}

    def set_state(self, state: dict[str, int]) -> None:
        self._number, self._offset = state["document"], state["offset"]


def read_window(documents: Sequence[np.ndarray], window: Window, tokenizer: Tokenizer, length: int) -> LMBatch:
    """Reads the tokens of a window and lays them out, padded at the end to T = `length`; see `layouts.window_row`."""
    tokens = np.concatenate([documents[index][start:stop] for index, start, stop in window]).astype(np.int32)
    padding = np.full(length - len(tokens), tokenizer.pad_id, np.int32)
    inside = np.arange(length) < len(tokens)
    return layouts.window_row(np.concatenate([tokens, padding]), inside, tokenizer.eos_id)
