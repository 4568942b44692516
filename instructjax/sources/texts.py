"""Reads public texts for pretraining, and splits each set by work.

A set is a folder with one file of JSON lines. Each line has a "text" and fields that name the
work it is part of. Long texts are not cut here: packing cuts them into rows.
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
    """The file of a set, and what counts as one work.

    Attributes:
      file: the name of the file in the set's folder.
      work: `work(record)` returns the name of the work that a text is part of.
    """

    file: str
    work: Callable[[Text], str]


SETS: Mapping[str, TextSet] = {
    "storybooks": TextSet("storybooks.jsonl.gz", lambda record: record.extra["title"]),
    "openstax_textbooks": TextSet("openstax.jsonl.gz", lambda record: record.extra["book"]),
    "standard_ebooks": TextSet("standard_ebooks.jsonl.gz", lambda record: record.extra["book"]),
    # Messages are ordered by conversation, without a mark at the end of one. Long runs of messages
    # are treated as works, so that few conversations are in two splits.
    "oasst1_en": TextSet("train_messages_text_only.jsonl.gz", lambda record: str(record.extra["i"] // 500)),
}


def load(root: epath.PathLike, name: str, validation: float = 0.05) -> list[Text]:
    """Reads a text set and holds out whole works for validation.

    Args:
      root: the folder of all text sets, with one folder per set.
      name: one of SETS.
      validation: the share of works to hold out, at least one work. They are chosen by a hash of
        their names, so that the choice is the same everywhere.

    Returns:
      The records in file order, each with its split ("train" or "validation") and with the
      set's name as its source.

    Raises:
      DataError: the set is unknown, its folder or file is missing, or it has only one work.
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
        raise DataError(f"{path}: expected at least 2 works, to hold one out, found only {names[0]!r}")
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
