"""Reads records from files of other formats and shapes than our own JSON lines.

    .jsonl  .json  .csv  .tsv    also with .gz or .zst behind it
    .parquet  .arrow             as Hugging Face's datasets writes them

A file gives rows: a place such as "data.csv:17" and fields by name. `exports.py` takes apart rows that hold several
records, and `shapes.py` turns fields into those of a record.
"""

from __future__ import annotations

import csv
import decimal
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from instructjax import files, records
from instructjax.data import exports, shapes
from instructjax.errors import RecordError
from instructjax.records import R, Ranking, Record

TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".json", *TABLES)
COLUMNS = (".parquet", ".arrow")
_MAGIC = "*?["  # of patterns
_ROWS = 1000  # of a batch of a file of columns
_LISTS = ("responses", "messages", "metadata")  # cells of these fields are read as JSON
_NUMBERS = ("scores", "ranks", "score", "choice")
_CELL = 2**26  # characters of a cell at most; the csv module's default is 2**17

Row = tuple[str, "dict[str, Any] | RecordError"]


def read(path: epath.PathLike, kind: type[R], names: Mapping[str, str]) -> Iterator[R | RecordError]:
    """Yields the records of a file, and a RecordError for each row that is not one; see `records.valid`.

    Args:
      path: a file with one of the suffixes above, in small letters or capitals.
      kind: the kind of records.
      names: paths into the file's fields, by our names; see `shapes.parse_names`.

    Raises:
      RecordError: the file is missing, unreadable, empty, or has another suffix.
    """

    has_cells = suffix_of(epath.Path(path)) in TABLES

    def mapped() -> Iterator[Row]:
        for where, row in rows(path, kind):
            if isinstance(row, RecordError):
                yield where, row
                continue
            try:
                for fields in exports.expand(row, kind, where):
                    ours = shapes.rename(fields, names)
                    yield where, shapes.to_fields(_read_cells(ours) if has_cells else ours, kind, where)
            except RecordError as error:
                yield where, error

    found = mapped()
    return records.from_rows(exports.join(found) if kind is Ranking else found, kind)


def rows(path: epath.PathLike, kind: type[Record]) -> Iterator[Row]:
    """Yields the rows of a file as they are, each with its place: the line, or the number of the row from 1."""
    path = epath.Path(path)
    suffix = suffix_of(path)
    if suffix in (".jsonl", ".json"):
        found = _json_rows(path, kind, suffix)
    elif suffix in TABLES:
        found = _table_rows(path, kind, "," if suffix == ".csv" else "\t")
    elif suffix in COLUMNS:
        found = _column_rows(path, kind, suffix)
    else:
        raise RecordError(
            f"{path}: expected a file that ends in {', '.join(LINES)} (also with .gz or .zst) or {', '.join(COLUMNS)}"
        )
    empty = True
    for row in found:
        empty = False
        yield row
    if empty:
        raise RecordError(f"{path}: expected at least one {kind.__name__} record, found none")


def suffix_of(path: epath.Path) -> str:
    """Returns the suffix that tells the format, in small letters and without that of a compression; "" if none does."""
    name = path.name.lower()
    for compression in files.COMPRESSIONS:
        if name.endswith(compression):
            name = name.removesuffix(compression)
            return next((suffix for suffix in LINES if name.endswith(suffix)), "")
    return next((suffix for suffix in (*LINES, *COLUMNS) if name.endswith(suffix)), "")


def expand(path: epath.Path) -> list[epath.Path]:
    """Returns the files that a path names: itself, those in a folder, or those that match a pattern with *, ? or [].

    Raises:
      RecordError: there are none.
    """
    is_pattern = any(char in str(path) for char in _MAGIC) and not path.exists()
    try:
        found = _matching(path) if is_pattern else _inside(path)
    except Exception as error:
        if not files.is_bucket(path):  # the packages that open buckets raise many kinds
            raise
        raise RecordError(f"{path}: expected files that can be read, found {files.describe_error(error)}") from None
    if not found:
        kind = "match this pattern" if is_pattern else "hold records, in this folder"
        raise RecordError(f"{path}: expected files that {kind}, found none")
    return sorted(found, key=str)


def _matching(pattern: epath.Path) -> list[epath.Path]:
    fixed = next(parent for parent in pattern.parents if not any(char in str(parent) for char in _MAGIC))
    # epath refuses **, which in a bucket could list everything.
    found = (fixed if files.is_bucket(fixed) else pathlib.Path(fixed)).glob(str(pattern.relative_to(fixed)))
    return [epath.Path(match) for match in found if match.is_file()]


def _inside(path: epath.Path) -> list[epath.Path]:
    return [file for file in path.iterdir() if file.is_file() and suffix_of(file)] if path.is_dir() else [path]


def _json_rows(path: epath.Path, kind: type[Record], suffix: str) -> Iterator[Row]:
    """Yields the objects of JSON lines, or of a .json file with one list."""
    if suffix == ".json":
        with files.open_data(path, f"a file of {kind.__name__} records") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if start == b"[":
            yield from _list_rows(path, kind)
            return
    for where, line in records.read_lines(path, kind):
        if isinstance(line, RecordError):
            yield where, line
            continue
        try:
            yield where, records.decode(line, where)
        except RecordError as error:
            yield where, error


def _list_rows(path: epath.Path, kind: type[Record]) -> Iterator[Row]:
    text = files.read_text(path, f"a file of {kind.__name__} records")
    try:
        found = records.DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: expected a list of JSON objects, found {error}") from None
    for number, fields in enumerate(found, start=1):
        where = f"{path}:{number}"
        is_object = isinstance(fields, dict)
        fault = RecordError(f"{where}: expected a JSON object, found {records.show(fields)}")
        yield where, fields if is_object else fault


def _table_rows(path: epath.Path, kind: type[Record], delimiter: str) -> Iterator[Row]:
    """Yields the rows of a table with a line of names. An empty cell is a field that the row does not have."""
    csv.field_size_limit(_CELL)
    with files.open_data(path, f"a file of {kind.__name__} records") as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                where = f"{path}:{reader.line_num}"  # the last line, if a cell has line breaks
                if None in cells:
                    expected = len(reader.fieldnames or ())
                    yield where, RecordError(f"{where}: expected {expected} cells, found more; quote commas")
                else:
                    yield where, {name: cell for name, cell in cells.items() if cell}
        except UnicodeDecodeError as error:
            raise RecordError(f"{path}:{reader.line_num}: expected UTF-8, found {error.reason}") from None
        except csv.Error as error:
            raise RecordError(f"{path}:{reader.line_num}: expected a row of a table, found {error}") from None


def _read_cells(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the cells that are lists or numbers. In a field of text, JSON is text, except for a list of messages."""
    return {name: _read_cell(name, cell) for name, cell in cells.items()}


def _read_cell(name: str, cell: Any) -> Any:
    if isinstance(cell, list):  # of cells
        return [_read_cell(name, item) for item in cell] if name in _NUMBERS else cell
    is_list = cell.lstrip().startswith("[")
    if not is_list and name not in _NUMBERS:
        return cell
    try:
        found = records.DECODER.decode(cell)
    except (ValueError, RecursionError):
        return cell
    are_messages = is_list and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in found)
    return found if name in (*_LISTS, *_NUMBERS) or (are_messages and found) else cell


def _column_rows(path: epath.Path, kind: type[Record], suffix: str) -> Iterator[Row]:
    """Yields the rows of a Parquet or Arrow file, which is read in batches."""
    import pyarrow  # these take as long to import as all of this package
    from pyarrow import parquet

    with files.open_data(path, f"a file of {kind.__name__} records") as file:
        try:
            if suffix == ".parquet":
                batches: Any = parquet.ParquetFile(file).iter_batches(batch_size=_ROWS)
            else:
                batches = _arrow_batches(file)
            number = 0
            for batch in batches:
                batch.validate(full=True)  # a damaged batch can end the process when it is read
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", _plain(fields)
        # A damaged length can be a MemoryError, and a damaged name of a field a UnicodeDecodeError.
        except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            found = " ".join(str(error).split())[:200] or "a damaged file"
            raise RecordError(f"{path}: expected {suffix.removeprefix('.')} data, found {found}") from None


def _arrow_batches(file: Any) -> Iterator[Any]:
    """Yields the batches of an Arrow stream, as `datasets` caches and saves it, or of an Arrow file."""
    import pyarrow

    try:
        yield from pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: dates, decimals and bytes as text, NaN as null."""
    match value:
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return value if abs(value) < float("inf") else None
        case decimal.Decimal():
            return float(value)
        case bytes():
            return value.decode("utf-8", "replace")
    return str(value)
