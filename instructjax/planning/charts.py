"""Pictures of plans, from the JSON that experiments/plan.py writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from instructjax.errors import RecordError
from instructjax.planning.chips import GIB

Plan = dict[str, Any]

# Okabe and Ito's colours, told apart by everyone.
_PARTS = {
    "weights": "#0072B2",
    "optimizer": "#56B4E9",
    "batch": "#F0E442",
    "rest": "#E69F00",
}
_OURS, _PAPER, _LIMIT = "#0072B2", "#7F7F7F", "#D55E00"
_WIDTH = 6.4  # inches


def load(path: epath.PathLike) -> Plan:
    """Reads a plan.

    Args:
      path: a file that `experiments/plan.py --json` wrote.

    Returns:
      {"recipe", "topology", "programs": [...], "stages": [...]}.

    Raises:
      RecordError: it is no such file.
    """
    path = epath.Path(path)
    try:
        head, *lines = map(json.loads, path.read_text().splitlines())
        return {
            "recipe": head["recipe"],
            "topology": head["topology"],
            "programs": [line["program"] for line in lines if "program" in line],
            "stages": [line["stage"] for line in lines if "stage" in line],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: expected a plan as experiments/plan.py writes it, found {error!r}") from None


def memory(plans: Sequence[Plan]) -> Figure:
    """What fills a device, program by program, and what it holds."""
    bars = [(plan, program) for plan in plans for program in plan["programs"] if program["compiled"]]
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, (_, program) in enumerate(bars):
        given, compiled = program["residents"], program["compiled"]
        parts = {name: given[name] for name in ("weights", "optimizer", "batch")}
        parts["rest"] = max(0.0, compiled["peak"] - sum(parts.values()))
        left = 0.0
        for name, size in parts.items():
            axes.barh(row, size / GIB, left=left / GIB, color=_PARTS[name], label=name if row == 0 else None)
            left += size
        axes.plot([compiled["available"] / GIB] * 2, [row - 0.4, row + 0.4], color=_LIMIT, linewidth=2)
    names = [f"{_short(plan)}\n{program['name']}" for plan, program in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB on each device; the red line is what a program may fill")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def compute(plan: Plan) -> Figure:
    """Petaflop/s-days of each stage, beside the paper's where it has them."""
    stages = plan["stages"]
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    for column, stage in enumerate(stages):
        axes.bar(column - 0.2, stage["days"], 0.38, color=_OURS, label="this recipe" if column == 0 else None)
        axes.text(column - 0.2, stage["days"], f"{stage['days']:.3g}", ha="center", va="bottom", fontsize=8)
    known = [(column, stage["paper"]) for column, stage in enumerate(stages) if stage["paper"]]
    for column, days in known:
        axes.bar(column + 0.2, days, 0.38, color=_PAPER, label="paper" if column == known[0][0] else None)
        axes.text(column + 0.2, days, f"{days:.3g}", ha="center", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(stages)), [stage["name"] for stage in stages])
    axes.set_ylabel("petaflop/s-days")
    axes.set_title(_short(plan), fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _short(plan: Plan) -> str:
    """ "175b on v5p:8x8x8"."""
    return f"{plan['recipe'].rpartition(':')[2]} on {plan['topology']}"
