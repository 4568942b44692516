"""Prepared data: opens the data sets that `preparation.py` writes, whose records are read when they are accessed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, overload

import tensorflow_datasets as tfds
from etils import epath

from instructjax import records
from instructjax.data.selection import Counts
from instructjax.errors import DataError
from instructjax.records import Demonstration, Prompt, R, Ranking, Record, Text

SET_NAMES: Mapping[type[Record], str] = {  # the prepared sets of a run
    Text: "text",
    Demonstration: "demonstrations",
    Prompt: "prompts",
    Ranking: "rankings",
}

VERSION = "1.0.0"  # of the features: "json" and "where"
_CHUNK = 5_000  # records that are read at once

# Wraps an iterable over all records of a set, which takes long, and yields its items; it may raise an error to stop.
Over: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


def written_file(kind: type[Record], folder: epath.Path) -> epath.Path:
    """Returns FOLDER/SET.jsonl, to which a run writes records of a kind."""
    return folder / f"{SET_NAMES[kind]}.jsonl"


def written_files(kind: type[Record], folder: epath.Path) -> list[epath.Path]:
    """Returns [FOLDER/SET.jsonl] for a kind of records, or [] if it does not exist."""
    path = written_file(kind, folder)
    return [path] if path.exists() else []


def fingerprint(directory: epath.PathLike, name: str) -> str:
    """Returns 16 characters that identify the content of a prepared set, not the names of its files.

    Raises:
      DataError: the set does not exist.
    """
    return _require_manifest(directory, name)["fingerprint"]


def counts(directory: epath.PathLike, name: str) -> dict[str, Counts]:
    """Returns by split how many records came in, and why some were left out.

    Raises:
      DataError: the set does not exist.
    """
    return {split: Counts(**found) for split, found in _require_manifest(directory, name)["counts"].items()}


def source_files(directory: epath.PathLike, name: str) -> list[str]:
    """Returns the files that a prepared set was made from.

    Raises:
      DataError: the set does not exist.
    """
    return _require_manifest(directory, name)["files"]


def load(directory: epath.PathLike, name: str, kind: type[R], split: str) -> Records[R]:
    """Opens a split of a prepared set. Records are read and decoded when they are accessed.

    Raises:
      DataError: the set or split does not exist, or its records are of another kind.
    """
    manifest = _require_manifest(directory, name)
    if manifest["kind"] != kind.__name__:
        raise DataError(f"{directory}/{name}: expected {kind.__name__} records, found {manifest['kind']} records")
    sizes = split_sizes(directory, name)
    if split not in sizes:
        found = ", ".join(f"{other} ({size})" for other, size in sizes.items())
        raise DataError(f"{directory}/{name}: expected records in split {split!r}, found only {found}")
    with data_errors(directory, name):
        source = tfds.builder_from_directory(set_directory(directory, name)).as_data_source(split)
    return Records(source, kind, lambda: data_errors(directory, name))


def split_sizes(directory: epath.PathLike, name: str) -> dict[str, int]:
    """Returns the number of records in each split of a prepared set. Empty splits are left out.

    Raises:
      DataError: the set does not exist.
    """
    _require_manifest(directory, name)
    with data_errors(directory, name):
        info = tfds.builder_from_directory(set_directory(directory, name)).info
        return {split: found.num_examples for split, found in info.splits.items()}


class Records(Sequence, Generic[R]):
    """The records of a split, with random access. A slice is a list."""

    def __init__(
        self,
        source: Any,
        kind: type[R],
        reading: Callable[[], contextlib.AbstractContextManager[None]],
    ):
        """Wraps an open data source.

        Args:
          source: a data source of tfds.
          kind: the kind of records.
          reading: makes a context in which errors of the source become DataErrors.
        """
        self._source = source
        self._kind = kind
        self._reading = reading

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> list[R]: ...

    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, found {index}")
        with self._reading():
            example = self._source[index % len(self)]
        return self._decode(example)

    def __getitems__(self, indices: Sequence[int]) -> list[R]:
        """Reads many records at once, which is faster than reading them one by one."""
        with self._reading():
            found = self._source.__getitems__(list(indices))
        return [self._decode(example) for example in found]

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def _decode(self, example: dict[str, bytes]) -> R:
        return records.parse(example["json"].decode("utf-8"), self._kind, example["where"].decode("utf-8"))


def set_directory(directory: epath.PathLike, name: str) -> epath.Path:
    """Returns the folder of a prepared set; it may not exist."""
    return epath.Path(directory) / name / VERSION


def read_manifest(folder: epath.Path) -> dict[str, Any] | None:
    """Reads the manifest of a set's folder; None if it is missing or damaged: the set is incomplete."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        return None
    keys = {"kind", "content", "shared", "fingerprint", "files", "counts"}
    return found if isinstance(found, dict) and found.keys() >= keys else None


@contextlib.contextmanager
def data_errors(directory: epath.PathLike, name: str) -> Iterator[None]:
    """Turns errors of a block that reads the files of a prepared set into a DataError."""
    try:
        yield
    except Exception as error:  # the libraries raise many kinds if files are cut or missing
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise DataError(
            f"{directory}/{name}: expected a prepared data set, found a damaged one ({reason}); remove {directory}"
        ) from error


def _require_manifest(directory: epath.PathLike, name: str) -> dict[str, Any]:
    manifest = read_manifest(set_directory(directory, name))
    if manifest is None:
        raise DataError(f"{directory}/{name}: expected a prepared data set, found none or an incomplete one")
    return manifest
