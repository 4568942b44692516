"""Packs tokens into rows.

Documents are joined and cut into windows; this stream can be resumed at any window. Sequences that must stay whole are
packed into rows that have room for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from instructjax.batch import LMBatch
from instructjax.data import layouts
from instructjax.records import Text
from instructjax.text.tokenizer import Tokenizer

_BLOCK = 64  # documents that are read and tokenized at once, which halves the time per document


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
    """A stream of windows: documents are joined end to end and cut; see `layouts.window_row`.

        documents   a b c $   d e f $   g h $
        windows     a b c $ d e   f $ g h $ ·          of 6 tokens

    Only the last window of a finite stream is padded. The state of the iterator says where the next window begins:
    {"block": the block of documents, "offset": the token in the block}.

    Grain's own `ConcatThenSplitIterDataset` cannot be used. Checkpoints store the state as JSON, and its state does not
    survive JSON (grain 0.2.18). An empty slice, (-1, -1), is read back as a list and mistaken for the rest of a
    document, so that a document is lost.
    """

    def __init__(self, records: Sequence[Text], order: grain.MapDataset, tokenizer: Tokenizer, length: int):
        """Creates the stream.

        Args:
          records: documents.
          order: the indices of the documents to pack, in order.
          tokenizer: encodes the text.
          length: T, tokens of a window.
        """
        super().__init__()
        # Many data sources read a list of records faster than one record at a time.
        read_many = getattr(records, "__getitems__", lambda indices: [records[i] for i in indices])

        def tokens(indices: Sequence[int]) -> np.ndarray:
            return np.concatenate([layouts.document_tokens(record, tokenizer) for record in read_many(indices)])

        self._blocks = order.batch(_BLOCK, batch_fn=tokens)
        self._length = length
        self._tokenizer = tokenizer

    def __iter__(self) -> grain.DatasetIterator:
        return _WindowIterator(self._blocks, self._length, self._tokenizer)


class _WindowIterator(grain.DatasetIterator):
    def __init__(self, blocks: grain.MapDataset, length: int, tokenizer: Tokenizer):
        super().__init__()
        self._blocks = blocks
        self._length = length
        self._pad_id, self._eos_id = tokenizer.pad_id, tokenizer.eos_id
        self._tokens: np.ndarray | None = None
        self.set_state({"block": 0, "offset": 0})

    def __next__(self) -> LMBatch:
        parts, missing = [], self._length
        while missing and self._block < len(self._blocks):
            if self._tokens is None:
                self._tokens = self._blocks[self._block]
            part = self._tokens[self._offset : self._offset + missing]
            parts.append(part)
            missing -= len(part)
            self._offset += len(part)
            if self._offset == len(self._tokens):
                self.set_state({"block": self._block + 1, "offset": 0})
        if not parts:
            raise StopIteration
        parts.append(np.full(missing, self._pad_id, np.int32))
        inside = np.arange(self._length) < self._length - missing
        return layouts.window_row(np.concatenate(parts), inside, self._eos_id)

    def get_state(self) -> dict[str, int]:
        return {"block": self._block, "offset": self._offset}

    def set_state(self, state: dict[str, int]) -> None:
        self._block, self._offset = state["block"], state["offset"]
        self._tokens = None  # of the block, read when needed
