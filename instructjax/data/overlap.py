"""Counts the prompts that the prepared sets of a run have in common, once, for data/report.md.

    overlap.json   {"what": what was counted, "prompts": {SET: {SPLIT: count}}, "shared": [PAIR, ...]}; a pair is
                   [SET, SPLIT, other SET, its SPLIT, count]

Only records that are used count, and equal prompts of a set and split count once. As in `splits.py`, prompts are equal
if they differ only in case and white space.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax import files
from instructjax.data import checked, prepared, splits
from instructjax.records import Record, Text


def count(folder: epath.Path, path: epath.Path, known: epath.Path) -> Mapping[str, Any]:
    """Returns the content of overlap.json, and writes it unless it is of these records already.

    Args:
      folder: the prepared sets.
      path: checked.json.
      known: overlap.json.
    """
    entries = checked.read(path)
    kinds = {
        name: kind
        for kind, name in prepared.SET_NAMES.items()
        if kind is not Text and name in entries and (folder / name).exists()
    }
    what = {name: entries[name]["what"] for name in kinds}
    if files.exists(known) and (found := files.read_json(known))["what"] == what:
        return found
    prompts = {
        (name, split): _prompts(prepared.load(folder, name, kind, split), entries[name]["splits"][split]["left_out"])
        for name, kind in kinds.items()
        for split in entries[name]["splits"]
    }
    pairs = (
        [*one, *other, len(np.intersect1d(prompts[one], prompts[other], assume_unique=True))]
        for one, other in itertools.combinations(prompts, 2)
    )
    counted: dict[str, Any] = {"what": what, "prompts": {}, "shared": [pair for pair in pairs if pair[-1]]}
    for (name, split), keys in prompts.items():
        counted["prompts"].setdefault(name, {})[split] = len(keys)
    files.write_json(known, counted)
    return counted


def _prompts(records: Sequence[Record], left_out: Collection[int]) -> np.ndarray:
    """Returns the different prompts of the records that are used, as sorted numbers of 8 bytes."""
    without = set(left_out)
    used = (record for index, record in enumerate(records) if index not in without)
    return np.unique(np.fromiter((int.from_bytes(splits.prompt_key(record)) for record in used), np.uint64))
