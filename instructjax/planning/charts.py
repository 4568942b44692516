"""Charts of plans, drawn from the JSON that `experiments/plan.py --json` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

from etils import epath
from matplotlib.figure import Figure

from instructjax.errors import RecordError
from instructjax.planning.chips import GIB


class Plan(TypedDict):
    """The content of one JSON file.

    Attributes:
      recipe: the recipe as named on the command line, such as "configs/instructgpt.py:175b".
      topology: the chips, such as "v5p:8x8x8".
      programs: a `plan.ProgramPlan` each, as a mapping, with "fits".
      stages: a `compute.StageCompute` each, as a mapping.
    """

    recipe: str
    topology: str
    programs: list[dict[str, Any]]
    stages: list[dict[str, Any]]


# The palette of Okabe and Ito, which color-blind readers can tell apart.
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

    Raises:
      RecordError: the file cannot be read, or is not a plan.
    """
    path = epath.Path(path)
    try:
        head, *lines = map(json.loads, path.read_text().splitlines())
        return Plan(
            recipe=head["recipe"],
            topology=head["topology"],
            programs=[line["program"] for line in lines if "program" in line],
            stages=[line["stage"] for line in lines if "stage" in line],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: expected a plan written by experiments/plan.py --json, found {error!r}") from None


def memory(plans: Sequence[Plan]) -> Figure:
    """Draws the contents of a device's memory, one bar per program, and the available memory."""
    bars = [(plan, program) for plan in plans for program in plan["programs"] if program["compiled"]]
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, (_, program) in enumerate(bars):
        arguments, compiled = program["residents"], program["compiled"]
        parts = {name: arguments[name] for name in ("weights", "optimizer", "batch")}
        parts["rest"] = max(0.0, compiled["peak"] - sum(parts.values()))
        left = 0.0
        for name, size in parts.items():
            axes.barh(row, size / GIB, left=left / GIB, color=_PARTS[name], label=name if row == 0 else None)
            left += size
        axes.plot([compiled["available"] / GIB] * 2, [row - 0.4, row + 0.4], color=_LIMIT, linewidth=2)
    names = [f"{_title(plan)}\n{program['name']}" for plan, program in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB per device; the red line is the memory available to a program")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def compute(plan: Plan) -> Figure:
    """Draws the petaflop/s-days of each stage, next to the paper's if it reports any."""
    stages = plan["stages"]
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    for column, stage in enumerate(stages):
        axes.bar(column - 0.2, stage["days"], 0.38, color=_OURS, label="this recipe" if column == 0 else None)
        axes.text(column - 0.2, stage["days"], f"{stage['days']:.3g}", ha="center", va="bottom", fontsize=8)
    reported = [(column, stage["paper"]) for column, stage in enumerate(stages) if stage["paper"]]
    for column, days in reported:
        axes.bar(column + 0.2, days, 0.38, color=_PAPER, label="paper" if column == reported[0][0] else None)
        axes.text(column + 0.2, days, f"{days:.3g}", ha="center", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(stages)), [stage["name"] for stage in stages])
    axes.set_ylabel("petaflop/s-days")
    axes.set_title(_title(plan), fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _title(plan: Plan) -> str:
    """Returns a short title such as "175b on v5p:8x8x8"."""
    return f"{plan['recipe'].rpartition(':')[2]} on {plan['topology']}"
