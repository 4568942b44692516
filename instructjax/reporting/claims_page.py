"""Writes what saved results say of the paper's claims, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from instructjax.evaluation import claims
from instructjax.evaluation.claims import Claim, Outcome, Part, Results


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
    """Returns the table of all claims, followed by their sections."""
    return "\n\n".join([table(chosen, seeds), *(section(claim, seeds) for claim in chosen)])


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
