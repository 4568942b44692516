"""Writes what saved results say of the paper's claims, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from etils import epath

from instructjax import files
from instructjax.errors import DataError
from instructjax.evaluation import claims
from instructjax.evaluation.claims import Claim, Outcome, Part, Results


def read(folder: epath.PathLike) -> list[Results]:
    """Reads the results of all seeds in a folder, its .json files."""
    return [files.read_json(path) for path in sorted(files.parse(folder, "folder").glob("*.json"))]


def table(chosen: Sequence[Claim], seeds: Sequence[Results]) -> str:
    """Returns one line per claim: what it says, the paper's figures, and the verdict."""
    lines = ["| | claim | section | verdict |", "|-|-|-|-|"]
    for claim in chosen:
        verdict = claims.decide([claims.measure(part, seeds).verdict for part in claim.parts])
        lines.append(f"| {claim.key} | {claim.sentence} | {claim.section} | {verdict} |")
    return "\n".join(lines)


def section(claim: Claim, seeds: Sequence[Results]) -> str:
    """Returns the section of a claim: its sentence, the paper's figures, a line per part, and the note."""
    outcomes = [claims.measure(part, seeds) for part in claim.parts]
    lines = ["| measure | expected | here | seeds | verdict |", "|-|-|-:|-:|-|"]
    for part, found in zip(claim.parts, outcomes, strict=True):
        lines.append(f"| {part.about} | {_range(part)} | {_estimate(found)} | {len(found.values)} | {found.verdict} |")
    verdict = claims.decide([found.verdict for found in outcomes])
    parts = [
        f"## ({claim.key}) {verdict}",
        f"{claim.sentence} ({claim.section}) In the paper: {claim.paper}.",
        "\n".join(lines) if claim.parts else "",
        claim.note,
    ]
    return "\n\n".join(filter(None, parts))


def page(chosen: Sequence[Claim], seeds: Sequence[Results]) -> str:
    """Returns where the numbers are from, and the table of all claims, followed by their sections."""
    return "\n\n".join([_origin(seeds), table(chosen, seeds), *(section(claim, seeds) for claim in chosen)])


def _origin(seeds: Sequence[Results]) -> str:
    """Returns which seeds and recipe the results are of.

    Raises:
      DataError: two results are of the same seed, so they are not independent, or of different recipes.
    """
    if not seeds:
        return "Nothing has been measured yet, so no claim is decided."
    numbers, recipes = sorted(results["seed"] for results in seeds), sorted({results["recipe"] for results in seeds})
    if len(set(numbers)) < len(numbers) or len(recipes) > 1:
        raise DataError(f"results: expected different seeds of one recipe, found the seeds {numbers} of {recipes}")
    return f"Measured with `{recipes[0]}`, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, numbers))}."


def _range(part: Part) -> str:
    if math.isinf(part.above):
        return f"below {part.below:g}"
    return f"above {part.above:g}" if math.isinf(part.below) else f"{part.above:g} to {part.below:g}"


def _estimate(found: Outcome) -> str:
    if not found.values:
        return "not measured"
    if found.estimate is None:
        return f"{found.values[0]:+.3f}"
    return f"{found.estimate.mean:+.3f} ({found.estimate.low:+.3f} to {found.estimate.high:+.3f})"
