"""Writes the tables and figures of docs/overoptimization.md from the results of laws.py.

    python experiments/benchmarks/laws_page.py [--results=runs/laws/laws.json]

Results that are given become docs/overoptimization.json, from which the page is made. The rest of it is unchanged.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructjax import files
from instructjax.evaluation.overoptimization import LAWS
from instructjax.reporting import figures, law_figures
from instructjax.reporting.law_figures import TITLES, plain

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

from benchmarks.laws_results import COEFFICIENTS, spread
from benchmarks.tables import markdown

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "overoptimization.json"
FIGURES = {"laws": law_figures.gold_and_proxy, "questions": law_figures.questions}
MARKS = "<!-- tables -->\n", "<!-- the end of the tables -->"
SYMBOLS = dict(zip(COEFFICIENTS, "αβ", strict=True))

Results = Mapping[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, help="laws.json of a run of laws.py")
    if given := parser.parse_args(arguments).results:
        RESULTS.write_text(given.read_text())
    results = files.read_json(RESULTS)
    for name, draw in FIGURES.items():
        figures.save(draw(results), DOCS / f"overoptimization_{name}.png")
    page = DOCS / "overoptimization.md"
    page.write_text(filled(page.read_text(), results))


def filled(text: str, results: Results) -> str:
    """Returns the page with the tables of the results between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{tables(results)}\n\n{MARKS[1]}{after}"


def tables(results: Results) -> str:
    """Returns the Markdown of all results."""
    parts = [
        "### Reward models",
        _reward_models(results),
        *(part for method in LAWS for part in _method(results, method)),
        "### Early stopping",
        _penalty(results),
        "### Label noise",
        _noise(results),
    ]
    return "\n\n".join(parts)


def _reward_models(results: Results) -> str:
    columns = ["reward model", "parameters", "rankings", "labels", "pairs ordered as by the truth"]
    first = results["arms"][0]["kl_coefficient"]
    rows = [
        [arm["size"], f"{arm['parameters']:,}", f"{arm['comparisons']:,}", arm["labels"], f"{arm['accuracy']:.3f}"]
        for arm in results["arms"]
        if arm["kl_coefficient"] == first
    ]
    return markdown(columns, rows)


def _method(results: Results, method: str) -> list[str]:
    """Returns a method's fits and extrapolations, their count, and the trends over reward models."""
    law = LAWS[method]
    other = next(form for form in LAWS.values() if form != law)
    columns = ["reward model", "rankings", "largest KL", "gain there", "largest gain", "α", "β", "R²", "R², other law"]
    columns += ["predicted from half the KL"]
    rows = []
    for arm in plain(results):
        found = arm[method]
        fit, last = found["fits"][law], max(found["points"], key=lambda point: point["kl"])
        largest = max(point["gain"]["mean"] for point in found["points"])
        rows.append(
            [
                arm["size"],
                f"{arm['comparisons']:,}",
                f"{last['kl']:.2f}",
                spread(last["gain"]),
                f"{largest:.3f}",
                *(spread(fit[name]) for name in COEFFICIENTS),
                f"{fit['r_squared']:.3f}",
                f"{found['fits'][other]['r_squared']:.3f}",
                _interval(found["extrapolation"]),
            ]
        )
    return [f"### {TITLES[method][0].upper()}{TITLES[method][1:]}", markdown(columns, rows), _summary(results, method)]


def _summary(results: Results, method: str) -> str:
    """Returns how often predictions hold, and the trends."""
    arms, law, trend = plain(results), LAWS[method], results["trends"][method]
    squares = [arm[method]["fits"][law]["r_squared"] for arm in arms]
    extrapolated = _count([arm[method]["extrapolation"] for arm in arms])
    lines = [
        f"R² is at least 0.95 for {sum(square >= 0.95 for square in squares)} of {len(arms)} reward models, and "
        f"{np.median(squares):.3f} in the median. {extrapolated} gains at the largest KL lie inside the interval that "
        "is predicted from the points with at most half of it."
    ]
    if trend:
        unseen = trend["unseen"]
        rows = [
            [
                SYMBOLS[name],
                *(_signed(trend[name][feature]) for feature in ("parameters", "comparisons")),
                f"{trend[name]['r_squared']:.2f}",
            ]
            for name in COEFFICIENTS
        ]
        lines += [
            markdown(["", "per doubling of parameters", "per doubling of rankings", "R²"], rows),
            f"From the smaller reward models alone, {_count(unseen)} gains of the largest size are predicted: "
            + "; ".join(f"{int(one['name'].split('-')[1]):,} rankings: {_compared(one)}" for one in unseen)
            + ".",
        ]
    return "\n\n".join(lines)


def _penalty(results: Results) -> str:
    columns = ["KL coefficient", "largest KL", "gold above the curve without a penalty, at equal KL", "adjusted p"]
    largest = {arm["kl_coefficient"]: max(point["kl"] for point in arm["ppo"]["points"]) for arm in results["arms"]}
    rows = [
        [
            f"{row['kl_coefficient']:g}",
            f"{largest[row['kl_coefficient']]:.2f}",
            _signed(row["gap"]),
            f"{row['adjusted_p_value']:.3f}",
        ]
        for row in results["penalty"]
    ]
    apart = sum(row["adjusted_p_value"] < 0.05 for row in results["penalty"])
    verdict = f"{apart} of {len(rows)} penalties give another curve." if apart else "No difference was detected."
    return f"{markdown(columns, rows)}\n\n{verdict}"


def _noise(results: Results) -> str:
    columns = ["method", "rankings", "largest common KL", "fall, noisy", "fall, exact", "difference"]
    columns += ["exact above noisy, at equal KL"]
    rows = [
        [
            TITLES[method],
            f"{row['comparisons']:,}",
            f"{row[method]['kl']:.2f}",
            *(_range(row[method][labels]) for labels in ("noisy", "exact", "difference")),
            _signed(row[method]["gap"]),
        ]
        for method in LAWS
        for row in results["noise"]
    ]
    return markdown(columns, rows)


def _count(predictions: Sequence[Mapping[str, Any] | None]) -> str:
    made = [found for found in predictions if found]
    return f"{sum(found['is_inside'] for found in made)} of {len(made)}"


def _interval(found: Mapping[str, Any] | None) -> str:
    return f"{found['low']:.3f} to {found['high']:.3f}{'' if found['is_inside'] else ' (missed)'}" if found else "–"


def _compared(found: Mapping[str, Any]) -> str:
    return f"{found['low']:.3f} to {found['high']:.3f}, measured {found['measured']:.3f}"


def _signed(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:+.4f} ({estimate['low']:+.4f} to {estimate['high']:+.4f})"


def _range(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


if __name__ == "__main__":
    main(sys.argv[1:])
