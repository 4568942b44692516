"""Summarizes what came in and what is used of it, as JSON for results.json and as Markdown for data/report.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from instructjax.data import checked, prepared


def summarize(folder: epath.Path, path: epath.Path) -> dict[str, Any]:
    """Returns {SET: {SPLIT: {"given", "used", "left_out": {reason: count}, "changed": {reason: count}, "lengths"}}}.

    `given` is `used` plus all of `left_out`. `changed` counts records among those that are used.

    Args:
      folder: the prepared sets.
      path: checked.json.
    """
    found = checked.read(path)
    return {
        name: {
            split: {
                "given": counts.given,
                **dataclasses.asdict(counts),
                "lengths": found[name]["splits"].get(split, {}).get("lengths", {}),
            }
            for split, counts in checked.count(folder, name, found[name]).items()
        }
        for name in prepared.SET_NAMES.values()
        if name in found and (folder / name).exists()
    }


def markdown(summary: Mapping[str, Any], recipe: str) -> str:
    """Returns the report about the records of a run as Markdown.

    Args:
      summary: see `summarize`.
      recipe: the name of the recipe.
    """
    return "\n".join(["# What was learned from", "", *_intro(recipe), *_counts(summary), *_lengths(summary)]) + "\n"


def _intro(recipe: str) -> Iterator[str]:
    yield f"Recipe `{recipe}`. Every record that came in is either used or left out for one of the reasons below."
    yield ""


def _counts(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "| set | split | in | used | left out | used in part |"
    yield "| - | - | - | - | - | - |"
    for name, splits in summary.items():
        for split, found in splits.items():
            left_out, changed = (_reasons(found[key]) for key in ("left_out", "changed"))
            yield f"| {name} | {split} | {found['given']} | {found['used']} | {left_out} | {changed} |"
    yield ""


def _lengths(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "Lengths of all records that carry a signal, in tokens: prompts with the separator, responses with EOS."
    yield ""
    yield "| set | split | part | shortest | half up to | 90 % up to | 99 % up to | longest |"
    yield "| - | - | - | - | - | - | - | - |"
    for name, splits in summary.items():
        for split, found in splits.items():
            for part, quantiles in found["lengths"].items():
                yield f"| {name} | {split} | {part} | {' | '.join(map(str, quantiles))} |"


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or "0"
