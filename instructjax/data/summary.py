"""Summarizes what came in and what is used of it, as JSON for results.json and as Markdown for data/report.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.data import checked, prepared

_SIZES = {  # Table 6, and Table 9 for the test set
    "demonstrations": {"train": 12_725, "validation": 1_653},
    "rankings": {"train": 33_207, "validation": 17_887},
    "prompts": {"train": 31_144, "validation": 16_185, "test": 3_196},
}
_PER_USER = {  # Table 8
    "demonstrations": {"train": 1.65, "validation": 1.87},
    "rankings": {"train": 5.35, "validation": 27.96},
    "prompts": {"train": 6.01, "validation": 31.55, "test": 1.81},
}
_MEDIANS = {  # Table 9, of the lengths of prompts
    "demonstrations": {"train": 283, "validation": 234},
    "rankings": {"train": 64, "validation": 77},
    "prompts": {"train": 62, "validation": 71, "test": 49},
}
_USE_CASES = {  # Table 1, in percent
    "generation": 45.6,
    "open qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed qa": 2.6,
    "extract": 1.9,
}


def summarize(folder: epath.Path, path: epath.Path) -> dict[str, Any]:
    """Returns {SET: {SPLIT: {...}}}, how many records came in, and what is known about those that are used.

    The fields are "given", "used", "left_out" and "changed" {reason: count}, "lengths" (the quantiles of
    `checked.py`), "users" {"users", "records"} and "use_cases" {use case: count}. `given` is `used` plus all of
    `left_out`. `changed` counts records among those that are used.

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
            known = {key: entry.get(key, {}) for key in ("lengths", "users", "use_cases")}
            summary[name][split] = {"given": counts.given, **dataclasses.asdict(counts), **known}
    return summary


def markdown(summary: Mapping[str, Any], recipe: str) -> str:
    """Returns the report about the records of a run as Markdown, with the paper's tables of the same things.

    Args:
      summary: see `summarize`.
      recipe: the name of the recipe.
    """
    rows = [(name, split, found) for name, splits in summary.items() for split, found in splits.items()]
    parts = [
        "# What was learned from",
        f"Recipe `{recipe}`. Every record that came in is used or left out for one of the reasons below.",
        "## Records",
        _table(
            ["set", "split", "in", "used", "the paper has (Table 6)", "left out", "used in part"],
            (
                [name, split, found["given"], found["used"], _paper(_SIZES, name, split), *_reasons(found)]
                for name, split, found in rows
            ),
        ),
    ]
    if any(found["users"].get("users") for _, _, found in rows):
        parts += [
            "## Records per user",
            _table(
                ["set", "split", "users", "records per user", "the paper has (Table 8)"],
                (
                    [name, split, count, f"{found['users']['records'] / count:.2f}", _paper(_PER_USER, name, split)]
                    for name, split, found in rows
                    if (count := found["users"].get("users"))
                ),
            ),
        ]
    parts += _use_cases(rows)
    parts += [
        "## Lengths",
        "Tokens of all records that carry a signal: of prompts with the separator, of responses with EOS.",
        _table(
            [*"set,split,part,shortest,half up to,90 % up to,99 % up to,longest,the paper's half (Table 9)".split(",")],
            (
                [name, split, part, *quantiles, _paper(_MEDIANS, name, split) if part == "prompt" else ""]
                for name, split, found in rows
                for part, quantiles in found["lengths"].items()
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _use_cases(rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[str]:
    """Returns the shares of use cases in the training split of each set that has them."""
    found = [
        (name, case, 100 * count / sum(entry["use_cases"].values()))
        for name, split, entry in rows
        for case, count in entry["use_cases"].items()
        if split == "train"
    ]
    if not found:
        return []
    cells = ([name, case, f"{share:.1f}", _USE_CASES.get(case.lower(), "")] for name, case, share in found)
    return ["## Use cases in training", _table(["set", "use case", "%", "the paper has % (Table 1)"], cells)]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _paper(table: Mapping[str, Mapping[str, float]], name: str, split: str) -> float | str:
    return table.get(name, {}).get(split, "")


def _reasons(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        ", ".join(f"{reason}: {count}" for reason, count in found[key].items()) or "0"
        for key in ("left_out", "changed")
    ]
