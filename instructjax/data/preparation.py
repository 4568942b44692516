"""Prepares records: validates files of records and writes them as a tfds data set with random access.

    records (.jsonl)  --prepare-->  DIRECTORY/NAME/1.0.0/ (array_record)  --prepared.load-->  records

TensorFlow is not needed. Each example is the JSON of a record, and the file and line that it was read from. Therefore
only `records.py` defines what a record is, unknown fields are kept, and an error that is found later can still name
file and line. See `prepared.py` for reading.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from instructjax import records
from instructjax.data import formats, prepared, selection, splits
from instructjax.data.prepared import SET_NAMES
from instructjax.data.selection import Choice, Counts
from instructjax.errors import DataError, RecordError
from instructjax.files import describe_error, is_bucket
from instructjax.records import SPLITS, R, Record, Text

_SHARD = 100_000  # records per file of the set
_CHUNK = 5_000  # records that are written at once


def prepare(
    kind: type[R],
    files: Sequence[epath.PathLike],
    directory: epath.PathLike,
    *,
    name: str,
    validation: float = 0.05,
    test: float = 0.05,
    names: Mapping[str, str] = types.MappingProxyType({}),
    merge_equal_answers: bool = True,
    strict: bool = False,
    shared: SharedPrompts | None = None,
    over: prepared.Over = iter,
) -> str:
    """Validates files of records and writes those that carry a signal as a data set with splits.

    If the set already exists, made from the same files with the same shares, nothing is written. Otherwise anything
    under that name is replaced, such as the remains of an interrupted call. Records keep their order within a split.
    If several processes share a directory, only one of them should call this.

    Args:
      kind: Text, Demonstration, Prompt or Ranking.
      files: files of one of the formats of `formats.py`.
      directory: the directory of prepared sets.
      name: the name of this set, such as "demonstrations".
      validation: share of users in the validation split, for records without a split; see `records.split_of`.
      test: share of users in the test split, for records without a split.
      names: paths into the files' fields, by our names; see `shapes.py`.
      merge_equal_answers: see `selection.choose_by_content`.
      strict: makes each record that carries no signal an error.
      shared: the prompts of all sets, so that none is in two splits; None to split by user only.
      over: wraps each pass over the records.

    Returns:
      The set's fingerprint; see `prepared.fingerprint`.

    Raises:
      RecordError: "FILE:LINE: field: expected ..., found ...", for the first lines that are invalid. An existing set is
        not changed then.
      DataError: there are no files, no record carries a signal, or tfds does not accept the name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"name: expected lower case letters, digits and _, starting with a letter, found {name!r}")
    if not files:
        raise DataError(f"{name}: expected at least one file of {kind.__name__} records, found none")
    folder = prepared.set_directory(directory, name)
    manifest: dict[str, Any] = {
        "kind": kind.__name__,
        "content": _content_hash(kind, files, (validation, test, merge_equal_answers, *names.items())),
        "shared": shared.fingerprint if shared else "",
        "files": [str(file) for file in files],
    }
    known = prepared.read_manifest(folder) or {}
    if {key: known.get(key) for key in manifest} == manifest and not (strict and _has_reasons(known)):
        return known["fingerprint"]
    prompts = shared.splits() if shared else None

    def choices() -> Iterator[tuple[str, Choice[R]]]:
        found = itertools.chain.from_iterable(formats.read(file, kind, names) for file in files)
        rules = {"merge_equal_answers": merge_equal_answers, "strict": strict}
        return records.valid(_choose(record, prompts, validation, test, **rules) for record in over(found))

    # A first pass, so that nothing is removed if a line is invalid.
    total, moved = Counts(), hashlib.sha256()
    for number, (split, choice) in enumerate(choices()):
        total.add(choice)
        if prompts is not None:
            moved.update(f"{number} {split} {choice.record is None}\n".encode())
    if not total.used:
        raise DataError(
            f"{', '.join(manifest['files'])}: expected at least one {kind.__name__} record that can be used, "
            f"found none of {total.given}: {total.describe()}"
        )
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    counts: dict[str, Counts] = {}

    def placed() -> Iterator[tuple[str, R]]:
        for split, choice in choices():
            counts.setdefault(split, Counts()).add(choice)
            if choice.record is not None:
                yield split, choice.record

    _write(folder, name, placed())
    # What the prompts of other sets have changed is part of the content, but not those prompts.
    manifest["fingerprint"] = hashlib.sha256(manifest["content"].encode() + moved.digest()).hexdigest()[:16]
    manifest["counts"] = {split: dataclasses.asdict(counts[split]) for split in SPLITS if split in counts}
    # The manifest marks a complete set, so it is written last.
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest["fingerprint"]


def _choose(
    found: R | RecordError,
    prompts: Mapping[bytes, str] | None,
    validation: float,
    test: float,
    *,
    merge_equal_answers: bool,
    strict: bool,
) -> tuple[str, Choice[R]] | RecordError:
    """Returns the split of a record and what is used of it, or what is wrong with it; see `prepare`."""
    if isinstance(found, RecordError):
        return found
    choice = selection.choose_by_content(found, merge_equal_answers=merge_equal_answers)
    if strict and choice.reason:
        return RecordError(choice.fault)
    if prompts is None:
        return records.split_of(found, validation, test), choice
    split, leak = splits.place(found, prompts, validation, test)
    return split, Choice(None, leak) if leak and choice.record is not None else choice


@dataclasses.dataclass(frozen=True)
class SharedPrompts:
    """The prompts of all sets of a run.

    Attributes:
      fingerprint: identifies the content of all sets.
      splits: returns the split of each prompt, see `splits.prompt_splits`; called only if a set is written.
    """

    fingerprint: str
    splits: Callable[[], Mapping[bytes, str]]


def shared_prompts(
    found: Mapping[type[Record], Sequence[epath.PathLike]],
    directory: epath.PathLike,
    *,
    validation: float,
    test: float,
    names: Mapping[str, str],
) -> SharedPrompts:
    """Returns the prompts of all sets of a run: of files, and of prepared sets of kinds that no file is given for.

    Args:
      found: the files of each kind of record.
      directory: the directory of prepared sets.
      validation: see `prepare`.
      test: see `prepare`.
      names: see `prepare`.
    """
    given = {kind: files for kind, files in found.items() if kind is not Text}
    rest = [kind for kind in SET_NAMES if kind is not Text and kind not in given and _is_there(directory, kind)]
    parts = [_content_hash(kind, files, ()) for kind, files in given.items()]
    parts += [prepared.fingerprint(directory, SET_NAMES[kind]) for kind in rest]

    def everything() -> Iterator[Record]:
        for kind, files in given.items():
            for file in files:  # the set's own pass reports what is not a record
                yield from (record for record in formats.read(file, kind, names) if not isinstance(record, RecordError))
        for kind in rest:
            for split in prepared.split_sizes(directory, SET_NAMES[kind]):
                for record in prepared.load(directory, SET_NAMES[kind], kind, split):
                    yield dataclasses.replace(record, split=split)

    return SharedPrompts(
        hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16],
        functools.cache(lambda: splits.prompt_splits(everything(), validation, test)),
    )


def _is_there(directory: epath.PathLike, kind: type[Record]) -> bool:
    return prepared.read_manifest(prepared.set_directory(directory, SET_NAMES[kind])) is not None


def _write(folder: epath.Path, name: str, placed: Iterator[tuple[str, Record]]) -> None:
    # A builder's download_and_prepare would import TensorFlow; the sequential writer does not.
    identity = tfds.core.DatasetIdentity(
        name=name, version=prepared.VERSION, data_dir=str(folder), module_name=__name__
    )
    features = tfds.features.FeaturesDict({"json": tfds.features.Text(), "where": tfds.features.Text()})
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=_SHARD, file_format="array_record")
    while chunk := list(itertools.islice(placed, _CHUNK)):
        examples: dict[str, list[dict[str, str]]] = {}
        for split, record in chunk:
            examples.setdefault(split, []).append({"json": records.to_json(record), "where": record.where})
        writer.initialize_splits([split for split in SPLITS if split in examples], fail_if_exists=False)
        writer.add_examples(examples)
    writer.close_all()


def _content_hash(kind: type, files: Sequence[epath.PathLike], rules: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(f"{prepared.VERSION} {kind.__name__} {rules}".encode())
    for path in map(epath.Path, files):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except (FileNotFoundError, IsADirectoryError):
            pass  # reading the records raises an error that gives the reason
        except Exception as error:
            if is_bucket(path):  # if the next try succeeds, a hash without this file would be that of other records
                raise RecordError(f"{path}: expected a file that can be read, found {describe_error(error)}") from None
            if not isinstance(error, OSError):
                raise
    return digest.hexdigest()[:16]


def _has_reasons(manifest: Mapping[str, Any]) -> bool:
    """Returns whether any record of a set was left out or changed."""
    return any(found["left_out"] or found["changed"] for found in manifest["counts"].values())
