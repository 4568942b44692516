"""Summarizes what came in and what is used of it, for results.json and data/report.md."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from instructjax.data import checked, prepared

# What is copied from checked.json.
KNOWN = ("lengths", "users", "use_cases", "sources", "annotations", "table9", "table10", "table11")


def summarize(folder: epath.Path, path: epath.Path) -> dict[str, Any]:
    """Returns {SET: {SPLIT: {...}}}, how many records came in, and what is known about those that are used.

    The fields are "given", "used", "left_out" and "changed" {reason: count}, and those of checked.json in KNOWN.
    `given` is `used` plus all of `left_out`. `changed` counts records among those that are used.

    Args:
      folder: the prepared sets.
      path: checked.json.
    """
    found = checked.read(path)
    summary: dict[str, Any] = {}
    for name in prepared.SET_NAMES.values():
        if name not in found or not (folder / name).exists():
            continue
        summary[name] = {}
        for split, counts in checked.count(folder, name, found[name]).items():
            entry = found[name]["splits"].get(split, {})
            known = {key: entry.get(key, {}) for key in KNOWN}
            summary[name][split] = {"given": counts.given, **dataclasses.asdict(counts), **known}
    return summary
