"""Tokenized text: the documents of a prepared set as token ids, which are read from the disk when they are accessed.

PREPARED/text/1.0.0/tokens/TOKENIZER/SPLIT.ids        the tokens of all documents, one after the other
                                     SPLIT.ends.npy   where each document ends
                                     tokens.json      the dtype of the ids; written last

TOKENIZER is the fingerprint of the tokenizer. Runs with different tokenizers may share the prepared sets, so the tokens
of one never replace those that another reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from etils import epath

from instructjax import files
from instructjax.data import layouts, prepared
from instructjax.records import Text
from instructjax.text.tokenizer import Tokenizer

_NAME = prepared.SET_NAMES[Text]


class Documents(Sequence):
    """Documents as arrays [n] of token ids; each ends with EOS. A slice is a list."""

    def __init__(self, ids: np.ndarray, ends: np.ndarray):
        """Wraps arrays.

        Args:
          ids: [N] integers, the tokens of all documents.
          ends: [n] integers, the end of each document in `ids`.
        """
        self._ids, self._ends = ids, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._ids[self._ends[index - 1] if index else 0 : self._ends[index]]


def tokenize(directory: epath.PathLike, tokenizer: Tokenizer, *, over: prepared.Over = iter) -> None:
    """Tokenizes the prepared text of a folder, if there is any, unless that is done; see `layouts.document_tokens`.

    Args:
      directory: the folder of prepared sets, on a disk.
      tokenizer: encodes the text.
      over: wraps each pass over the records.
    """
    if prepared.read_manifest(prepared.set_directory(directory, _NAME)) is None:
        return
    folder = _folder(directory, tokenizer)
    mark = folder / "tokens.json"
    if mark.exists():
        return
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    folder.mkdir(parents=True, exist_ok=True)
    for split in prepared.split_sizes(directory, _NAME):
        lengths = []
        with (folder / f"{split}.ids").open("wb") as file:
            for record in over(prepared.load(directory, _NAME, Text, split)):
                tokens = layouts.document_tokens(record, tokenizer)
                lengths.append(len(tokens))
                file.write(tokens.astype(dtype).tobytes())
        with (folder / f"{split}.ends.npy").open("wb") as file:
            np.save(file, np.cumsum(lengths))
    files.write_json(mark, {"dtype": dtype.name})


def load(directory: epath.PathLike, split: str, tokenizer: Tokenizer) -> Documents:
    """Opens the documents of a split, as this tokenizer has encoded them.

    Raises:
      DataError: there is no such split, or its tokens are missing or damaged.
    """
    folder, count = _folder(directory, tokenizer), len(prepared.load(directory, _NAME, Text, split))
    with prepared.data_errors(directory, _NAME):
        dtype = files.read_json(folder / "tokens.json")["dtype"]
        ids, ends = np.memmap(folder / f"{split}.ids", dtype, "r"), np.load(folder / f"{split}.ends.npy")
        if len(ends) != count or len(ids) != ends[-1]:
            raise ValueError(f"{split}: expected {count} documents, found other tokens")
    return Documents(ids, ends)


def _folder(directory: epath.PathLike, tokenizer: Tokenizer) -> epath.Path:
    return prepared.set_directory(directory, _NAME) / "tokens" / tokenizer.fingerprint
