"""Input data as JSON lines: texts, demonstrations, prompts and rankings.

A record is one JSON object on one line of a UTF-8 file, `.jsonl` or `.jsonl.gz`:

    Text           {"text": "..."}
    Demonstration  {"prompt": "...", "response": "..."}
    Prompt         {"prompt": "..."}
    Ranking        {"prompt": "...", "responses": [K texts], "scores": [K numbers]}

A prompt is a text or a list of messages, {"role": "user", "content": "..."}; see `conversation.py`.
Higher scores are better, equal scores are a tie. A ranking may carry "metadata",
one object per response with the fields of the paper's Table 3. Every record may
carry "user", "use_case", "labeler", "split" and "source". Fields that are not
named here are kept, in `extra`.

This module checks only the form. `data/selection.py` leaves out valid records from which
nothing can be learned, such as rankings in which all answers tie.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import json
import reprlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from etils import epath

from instructjax import conversation, files
from instructjax.errors import RecordError
from instructjax.errors import show as show  # other modules read it here

SPLITS = ("train", "validation", "test")
MAX_RESPONSES = 32  # the paper ranks K = 4 to 9 (section 3.5); comparisons.max_answers limits them
MAX_FAULTS = 20  # that one error lists
MAX_LINE = 2**26  # bytes; a whole novel is about 2**20
TABLE3_FLAGS = (  # the binary fields of the paper's Table 3
    "fails_correct_instruction",
    "inappropriate_for_customer_assistant",
    "hallucination",
    "satisfies_constraint",
    "sexual_content",
    "violent_content",
    "encourages_violence",
    "denigrates_protected_class",
    "harmful_advice",
    "expresses_opinion",
    "expresses_moral_judgment",
)
_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Fields that every kind of record may carry.

    Attributes:
      user: who sent the prompt; splits are made by user, so that validation and
        test hold none of the training users (section 3.2).
      use_case: one of the categories of the paper's Table 1.
      labeler: who wrote the response or ranked the responses.
      split: "train", "validation" or "test"; if None, `split_of` chooses it.
      source: where the record came from, free text.
      extra: all fields of the JSON object that are not attributes.
      where: the place it was read from, such as "data.jsonl:17", for error messages.
        It is not part of the record: it is neither compared nor written.
    """

    user: str | None = None
    use_case: str | None = None
    labeler: str | None = None
    split: str | None = None
    source: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str = dataclasses.field(default="record", compare=False, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Record):
    """A document to pretrain on."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """A prompt and the response that a labeler wrote for it."""

    prompt: str
    response: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """A prompt without a response, for PPO and for evaluation."""

    prompt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Record):
    """K responses to one prompt and a labeler's score for each.

    Attributes:
      scores: K numbers, higher is better, equal is a tie. Only their order is used.
      metadata: None, or K mappings with the fields of the paper's Table 3.
    """

    prompt: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    metadata: tuple[Mapping[str, Any], ...] | None = None


R = TypeVar("R", bound=Record)
T = TypeVar("T")


def parse(line: str, kind: type[R], where: str = "record") -> R:
    """Reads one JSON line as a record of the given kind.

    Args:
      line: one JSON object.
      kind: Text, Demonstration, Prompt or Ranking.
      where: the place to name in an error, such as "data.jsonl:17".

    Returns:
      The record; unknown fields are in `extra`.

    Raises:
      RecordError: "WHERE: field: expected ..., found ...".
    """
    return from_dict(decode(line, where), kind, where)


def decode(line: str, where: str) -> dict[str, Any]:
    """Reads one JSON line as an object; see `parse`."""
    try:
        fields = DECODER.decode(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or an integer of thousands of digits
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        if line.strip() in ("{", "["):
            reason = "JSON over several lines: write one object per line, or a list in a file that ends in .json"
        raise RecordError(f"{where}: expected one JSON object, found {show(line)} ({reason})") from None
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: expected a JSON object, found {show(fields)}")
    return fields


def from_dict(fields: Mapping[str, Any], kind: type[R], where: str = "record") -> R:
    """Validates the fields of a JSON object as a record; see `parse`."""
    _check_unicode(fields, where)
    names = _FIELDS[kind]
    known = {name: fields[name] for name in names if name in fields}
    extra = {name: value for name, value in fields.items() if name not in names}
    required = {
        Text: ("text",),
        Demonstration: ("prompt", "response"),
        Prompt: ("prompt",),
        Ranking: ("prompt", "responses", "scores"),
    }[kind]
    for name in required:
        if name not in known:
            found = textwrap.shorten(", ".join(sorted(fields)), 200, placeholder="...") or "no fields"
            raise RecordError(f"{where}: {name}: expected in a {kind.__name__}, found only {found}")
    if isinstance(known.get("prompt"), list):
        known["prompt"] = conversation.as_prompt(conversation.parse(known["prompt"], f"{where}: prompt"))
    for name in ("text", "prompt", "response"):
        if name in known:
            _check_text(known[name], f"{where}: {name}")
    for name in ("user", "use_case", "labeler", "source"):
        if known.get(name) is not None and not isinstance(known[name], str):
            raise RecordError(f"{where}: {name}: expected text, found {show(known[name])}")
    if known.get("split") not in (None, *SPLITS):
        raise RecordError(f"{where}: split: expected one of {', '.join(SPLITS)}, found {show(known['split'])}")
    if kind is Ranking:
        _check_ranking(known, where)
        known["responses"] = tuple(known["responses"])
        known["scores"] = tuple(float(score) for score in known["scores"])
        if known.get("metadata") is not None:
            known["metadata"] = tuple(known["metadata"])
    return kind(**known, extra=extra, where=where)


def to_json(record: Record) -> str:
    """Writes a record as one JSON line without the line break; `parse` inverts it."""
    own = {name: getattr(record, name) for name in _FIELDS[type(record)]}
    kept = {name: value for name, value in own.items() if value is not None}
    if "prompt" in kept:
        kept["prompt"] = conversation.to_json(kept["prompt"])
    return _ENCODER.encode({**kept, **record.extra})


def read(path: epath.PathLike, kind: type[R]) -> list[R]:
    """Reads and validates a whole file of records.

    Raises:
      RecordError: the file is missing, unreadable, empty, not UTF-8, or some of its lines are not records:
        "FILE:LINE: field: expected ..., found ...", for the first MAX_FAULTS of them.
    """
    path = epath.Path(path)
    if not path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise RecordError(f"{path}: expected a file that ends in .jsonl or .jsonl.gz")
    lines = ((where, _try(decode, line, where)) for where, line in read_lines(path, kind))
    return list(valid(from_rows(lines, kind)))


def read_lines(path: epath.PathLike, kind: type[Record]) -> Iterator[tuple[str, str | RecordError]]:
    """Yields ("FILE:LINE", the line or what is wrong with it), with line numbers from 1. Blank lines are skipped.

    Raises:
      RecordError: the file is missing, unreadable, empty, compressed without a suffix that says so, or in UTF-16.
    """
    is_empty = True
    for number, raw in enumerate(_lines(epath.Path(path), kind), start=1):
        where = f"{path}:{number}"
        if number == 1:
            raw = _without_mark(raw, where)
        if len(raw) > MAX_LINE:
            raise RecordError(f"{where}: expected a line of at most {MAX_LINE} bytes, found a longer one")
        if not raw.strip():
            continue
        is_empty = False
        try:
            yield where, raw.removesuffix(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            yield where, RecordError(f"{where}: expected UTF-8, found {error.reason}")
    if is_empty:
        raise RecordError(f"{path}: expected at least one {kind.__name__} record, found none")


def _without_mark(raw: bytes, where: str) -> bytes:
    """Removes the byte order mark that some editors write from a file's first line.

    Raises:
      RecordError: the file is compressed, or in UTF-16.
    """
    if raw[:2] == _GZIP:
        raise RecordError(f"{where}: expected UTF-8, found gzip data; let the file's name end in .gz")
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise RecordError(f"{where}: expected UTF-8, found UTF-16")
    return raw.removeprefix(codecs.BOM_UTF8)


def from_rows(rows: Iterable[tuple[str, Any]], kind: type[R]) -> Iterator[R | RecordError]:
    """Yields a record for each (place, fields), or a RecordError if the fields do not make one."""
    for where, fields in rows:
        yield fields if isinstance(fields, RecordError) else _try(from_dict, fields, kind, where)


def valid(found: Iterable[T | RecordError]) -> Iterator[T]:
    """Yields the records, and then raises one error for all errors found among them.

    Raises:
      RecordError: lists the first MAX_FAULTS errors in one line, and how many more there are.
    """
    faults: list[str] = []
    count = 0
    for record in found:
        if not isinstance(record, RecordError):
            yield record
            continue
        count += 1
        if count <= MAX_FAULTS:
            faults.append(str(record))
    if count:
        raise RecordError(list_faults(faults, count))


def list_faults(faults: Sequence[str], count: int) -> str:
    """Formats an error message: the first faults, and how many of all `count` faults are not listed."""
    listed = faults[:MAX_FAULTS]
    more = count - len(listed)
    return "; ".join([*listed, *([f"and {more} more"] if more else [])])


def _try(function: Callable[..., T], *arguments: Any) -> T | RecordError:
    """Calls a function; returns a RecordError if it raises one, or if its first argument already is one."""
    if isinstance(arguments[0], RecordError):
        return arguments[0]
    try:
        return function(*arguments)
    except RecordError as error:
        return error


def _lines(path: epath.Path, kind: type[Record]) -> Iterator[bytes]:
    """Yields the lines of a file without loading the whole file. A line is cut after MAX_LINE + 1 bytes."""
    with files.open_data(path, f"a file of {kind.__name__} records") as lines:
        while raw := lines.readline(MAX_LINE + 1):
            yield raw


def write(path: epath.PathLike, records: Iterable[Record]) -> int:
    """Writes records to a `.jsonl` or `.jsonl.gz` file, atomically.

    Returns:
      The number of records written.
    """
    path, records = epath.Path(path), list(records)
    data = to_lines(records)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data)
    return len(records)


def to_lines(records: Iterable[Record]) -> bytes:
    """Returns the content of a `.jsonl` file of records."""
    return "".join(to_json(record) + "\n" for record in records).encode("utf-8")


def split_of(record: Record, validation: float = 0.05, test: float = 0.05) -> str:
    """Returns the split of a record: its own, or one drawn from a hash of its user.

    Because the user is hashed (section 3.2 splits by user ID), all records of one user
    fall into the same split, in every file and on every machine.

    Args:
      record: any record; without a user, its prompt or text is hashed instead.
      validation: share of users in the validation split.
      test: share of users in the test split.
    """
    if record.split is not None:
        return record.split
    text: str = getattr(record, "text" if isinstance(record, Text) else "prompt")
    name = record.user or text
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if draw < validation:
        return "validation"
    return "test" if draw < validation + test else "train"


def _field_names(kind: type[Record]) -> list[str]:
    """Lists the fields of a record's JSON object, the record's own first."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in ("extra", "where")]
    common = len(dataclasses.fields(Record)) - 2
    return names[common:] + names[:common]


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise RecordError(f"{where}: expected text, found {show(value)}")


def _check_unicode(fields: Mapping[str, Any], where: str) -> None:
    try:
        _ENCODER.encode(fields).encode("utf-8")
    except UnicodeEncodeError as error:
        found = ascii(error.object[max(0, error.start - 20) : error.end])
        raise RecordError(f"{where}: expected valid Unicode, found a lone surrogate at the end of {found}") from None
    except RecursionError:
        raise RecordError(f"{where}: expected a JSON object, found one nested too deeply") from None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if abs(value) == float("inf"):
        raise ValueError(f"{reprlib.repr(number)} is too large")
    return value


def _check_ranking(fields: Mapping[str, Any], where: str) -> None:
    responses, scores, metadata = fields["responses"], fields["scores"], fields.get("metadata")
    if not isinstance(responses, list | tuple):
        raise RecordError(f"{where}: responses: expected a list of texts, found {show(responses)}")
    if len(responses) > MAX_RESPONSES:
        raise RecordError(f"{where}: responses: expected at most {MAX_RESPONSES} answers, found {len(responses)}")
    for i, response in enumerate(responses):
        if not isinstance(response, str):
            raise RecordError(f"{where}: responses[{i}]: expected text, found {show(response)}")
    if not isinstance(scores, list | tuple) or len(scores) != len(responses):
        raise RecordError(f"{where}: scores: expected {len(responses)} numbers, found {show(scores)}")
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:
            raise RecordError(f"{where}: scores[{i}]: expected a finite number, found {show(score)}")
    if metadata is not None and (
        not isinstance(metadata, list | tuple)
        or len(metadata) != len(responses)
        or not all(isinstance(entry, dict) for entry in metadata)
    ):
        raise RecordError(f"{where}: metadata: expected {len(responses)} objects, found {show(metadata)}")


_FIELDS: Mapping[type[Record], list[str]] = {
    kind: _field_names(kind) for kind in (Text, Demonstration, Prompt, Ranking)
}
DECODER = json.JSONDecoder(parse_constant=_not_json, parse_float=_finite)
_ENCODER = json.JSONEncoder(ensure_ascii=False)
