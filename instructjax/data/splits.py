"""Places records in splits by user and by prompt: no prompt is in two splits, over all sets of a run.

Splits are by user (section 3.2), but users can send the same prompt, and files without users are split by prompt. Then
a prompt of the test split would be trained on. Therefore all records of a prompt have one split: of

- the splits that its records give, the last of train, validation and test. Records that give another are left out;
- the split of its users, if all of them have the same;
- a hash of the prompt.

So a user is in two splits only by prompts that users of other splits sent, too. Prompts are the same if they differ in
case and white space only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from instructjax import records
from instructjax.records import SPLITS, Prompt, Record, Text


def prompt_splits(given: Iterable[Record], validation: float, test: float) -> dict[bytes, str]:
    """Returns the split of each prompt that has a record with a user or a split, by its `prompt_key`.

    Args:
      given: the records of all sets.
      validation: see `records.split_of`.
      test: see `records.split_of`.
    """
    by_split: dict[bytes, str] = {}
    by_user: dict[bytes, str] = {}
    for record in given:
        if isinstance(record, Text) or not (record.user or record.split):
            continue
        key, split = prompt_key(record), records.split_of(record, validation, test)
        if record.split:
            by_split[key] = max(split, by_split.get(key, split), key=SPLITS.index)
        elif by_user.setdefault(key, split) != split:
            by_user[key] = _hashed(record, validation, test)
    return by_user | by_split


def place(record: Record, prompts: Mapping[bytes, str], validation: float, test: float) -> tuple[str, str]:
    """Returns the split of a record, and why it is left out of it; "" if it is not.

    Args:
      record: any record.
      prompts: see `prompt_splits`.
      validation: see `records.split_of`.
      test: see `records.split_of`.
    """
    if isinstance(record, Text):
        return records.split_of(record, validation, test), ""
    split = prompts.get(prompt_key(record)) or _hashed(record, validation, test)
    if record.split in (None, split):
        return split, ""
    return str(record.split), f"prompt of the {split} split"


def prompt_key(record: Record) -> bytes:
    """Returns 8 bytes that are the same for prompts that differ in case and white space only."""
    return hashlib.sha256(_normalize(record).encode("utf-8", "surrogatepass")).digest()[:8]


def _hashed(record: Record, validation: float, test: float) -> str:
    return records.split_of(Prompt(prompt=_normalize(record)), validation, test)


def _normalize(record: Record) -> str:
    prompt: str = getattr(record, "prompt")  # noqa: B009  Text has none
    return " ".join(prompt.casefold().split())
