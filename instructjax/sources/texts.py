"""Public texts to pretrain on, each set split by work.

A set is a folder with one file of JSON lines that hold a "text" each, and fields that
tell what work it is a part of. Long texts stay whole: packing cuts them into rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import reprlib
import textwrap
from collections.abc import Callable, Mapping

from etils import epath

from instructjax import records
from instructjax.errors import DataError
from instructjax.records import Text


@dataclasses.dataclass(frozen=True)
class TextSet:
    """Where the texts of a set lie, and what counts as one work.

    Attributes:
      file: the name of the file in the set's folder.
      work: from a record, the name of the work that it is a part of.
    """

    file: str
    work: Callable[[Text], str]


SETS: Mapping[str, TextSet] = {
    "storybooks": TextSet("storybooks.jsonl.gz", lambda record: record.extra["title"]),
    "openstax_textbooks": TextSet("openstax.jsonl.gz", lambda record: record.extra["book"]),
    "standard_ebooks": TextSet("standard_ebooks.jsonl.gz", lambda record: record.extra["book"]),
    # Messages in their order, conversation by conversation, without a mark where one ends:
    # long runs of them are taken for works, so that few conversations are in two splits.
    "oasst1_en": TextSet("train_messages_text_only.jsonl.gz", lambda record: str(record.extra["i"] // 500)),
}


def load(root: epath.PathLike, name: str, validation: float = 0.05) -> list[Text]:
    """Reads a text set and holds out whole works for validation.

    Args:
      root: the folder of all text sets, with one folder for each.
      name: one of SETS.
      validation: share of the works to hold out, at least one; chosen by a hash of
        their names, so that the choice is the same everywhere.

    Returns:
      The records in file order, each with its split ("train" or "validation") and the
      set's name as its source.

    Raises:
      DataError: the set is unknown, its folder or file is missing, or it is one work only.
      RecordError: a line is not a Text record with the set's fields.
    """
    if name not in SETS:
        raise DataError(f"texts: expected one of {', '.join(SETS)}, found {name!r}")
    path = epath.Path(root) / name / SETS[name].file
    if not path.is_file():
        raise DataError(f"{path}: expected the text set {name}, found no such file")
    texts = records.read(path, Text)
    works = [_work(record, SETS[name]) for record in texts]
    names = sorted(set(works), key=lambda work: hashlib.sha256(work.encode("utf-8")).digest())
    if len(names) < 2:
        raise DataError(f"{path}: expected several works, to hold one out, found only {names[0]!r}")
    held_out = set(names[: max(1, round(validation * len(names)))])
    return [
        dataclasses.replace(record, split="validation" if work in held_out else "train", source=name)
        for record, work in zip(texts, works, strict=True)
    ]


def _work(record: Text, text_set: TextSet) -> str:
    try:
        work = text_set.work(record)
    except (KeyError, TypeError) as error:
        fields = textwrap.shorten(", ".join(record.extra), 200, placeholder="...") or "only text"
        raise records.RecordError(f"{record.where}: expected the work's name ({error}), found {fields}") from None
    if not isinstance(work, str):
        raise records.RecordError(f"{record.where}: expected the work's name, found {reprlib.repr(work)}")
    return work
