"""Reads the public files of tasks: JSON, JSON lines, tables, and lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.data import tfds_sets
from instructjax.errors import RecordError
from instructjax.evaluation.tasks.task import Tfds

Kind = type | tuple[type, ...]


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      RecordError: the file cannot be read, or holds something else.
    """
    return _object(_text(path), str(path))


def read_json_lines(
    path: epath.Path, fields: Mapping[str, Kind], tfds: Tfds | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields (place, object) for each line of a .jsonl or .jsonl.gz file, or for each example of a set of tfds.

    Args:
      path: the file, or the folder of the set.
      fields: those that each object must have, with their types.
      tfds: describes the set.

    Raises:
      RecordError: the file cannot be read, a line is not an object, or a field is missing or of another type.
      DataError: the set cannot be read.
    """
    objects = (
        ((where, dict(tfds.record(example))) for where, example in tfds_sets.read(path, tfds.split))
        if tfds is not None and path.is_dir()
        else ((where, _object(line, where)) for where, line in read_lines(path))
    )
    for where, found in objects:
        check_fields(found, fields, where)
        yield where, found


def check_fields(found: Any, fields: Mapping[str, Kind], where: str) -> None:
    """Checks that a value of a JSON file is an object with these fields.

    Raises:
      RecordError: it is not an object, or a field is missing or of another type.
    """
    if not isinstance(found, dict):
        raise RecordError(f"{where}: expected a JSON object, found {json.dumps(found):.60}")
    for name, kind in fields.items():
        if name not in found:
            raise RecordError(f"{where}: {name}: expected, found only {', '.join(found)}")
        if not isinstance(found[name], kind) or isinstance(found[name], bool) != (kind is bool):
            raise RecordError(f"{where}: {name}: expected {_kind(kind)}, found {json.dumps(found[name]):.60}")


def read_lines(path: epath.Path) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for each line of a text file, .gz or not, without its line break.

    Raises:
      RecordError: the file cannot be read, or is empty.
    """
    for number, line in enumerate(_text(path).removesuffix("\n").split("\n"), start=1):
        yield f"{path}:{number}", line.removesuffix("\r")


def read_table(path: epath.Path, columns: Sequence[str], *, tabs: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields (place, row) for each row of a CSV file with a header, or of one whose columns are separated by tabs.

    Raises:
      RecordError: the file cannot be read, or lacks a column.
    """
    quoting: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), **quoting)
    found = reader.fieldnames or ()
    if missing := [column for column in columns if column not in found]:
        raise RecordError(f"{path}: expected the columns {', '.join(columns)}, found none named {' or '.join(missing)}")
    for number, row in enumerate(reader, start=1):
        if any(row[column] is None for column in columns):
            raise RecordError(f"{path}: record {number}: expected {len(found)} fields, found fewer")
        yield f"{path}: record {number}", row


def _text(path: epath.Path) -> str:
    text = files.read_text(path, "a file of examples")
    if not text.strip():
        raise RecordError(f"{path}: expected at least one example, found none")
    return text


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{where}: expected one JSON object, found {error}") from None
    if not isinstance(found, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def _kind(kind: Kind) -> str:
    names = {str: "text", list: "a list", dict: "an object", int: "an integer", bool: "true or false"}
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
