"""Charts of plans, drawn from the JSON that `experiments/plan.py --json` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instructjax.accelerators import GIB
from instructjax.errors import RecordError
from instructjax.reporting import style


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


@style.talk
def memory(plans: Sequence[Plan]) -> Figure:
    """Draws the contents of a device's memory, one bar per program, and the available memory."""
    bars = [(plan, program) for plan in plans for program in plan["programs"] if program["compiled"]]
    figure, (axes,) = style.grid(1, height=1.8 + 0.62 * len(bars))
    for row, (_, program) in enumerate(bars):
        arguments, compiled = program["residents"], program["compiled"]
        parts = {name: arguments[name] for name in ("weights", "optimizer", "batch")}
        parts["rest"] = max(0.0, compiled["peak"] - sum(parts.values()))
        left = 0.0
        for name, size in parts.items():
            axes.barh(row, size / GIB, 0.7, left=left / GIB, color=_PARTS[name], label=name if row == 0 else None)
            left += size
        limit = "available to a program" if row == 0 else None
        axes.plot([compiled["available"] / GIB] * 2, [row - 0.42, row + 0.42], color=_LIMIT, linewidth=2.5, label=limit)
    names = [f"{_title(plan)}\n{program['name']}{_note(plan, plans)}" for plan, program in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=10)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlabel("GiB per device")
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=3)
    return figure


@style.talk
def compute(plan: Plan) -> Figure:
    """Draws the petaflop/s-days of each stage, next to the paper's if it reports any."""
    stages = plan["stages"]
    figure, (axes,) = style.grid(1, height=1.6 + 0.55 * len(stages))
    for row, stage in enumerate(stages):
        _bar(axes, row - 0.2, stage["days"], _OURS, "this recipe" if row == 0 else None)
    reported = [(row, stage["paper"]) for row, stage in enumerate(stages) if stage["paper"]]
    for row, days in reported:
        _bar(axes, row + 0.2, days, _PAPER, "paper" if row == reported[0][0] else None)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_yticks(range(len(stages)), [stage["name"] for stage in stages])
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.set_xlabel("petaflop/s-days (logarithmic)")
    axes.set_title(_title(plan))
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=2)
    return figure


def _bar(axes: Axes, row: float, days: float, color: str, label: str | None) -> None:
    """Draws a horizontal bar with its length next to its end."""
    axes.barh(row, days, 0.36, color=color, label=label)
    text = f"{days:,.0f}" if days >= 100 else f"{days:.3g}"
    axes.annotate(text, (days, row), (4, 0), textcoords="offset points", va="center", fontsize=11)


def _note(plan: Plan, plans: Sequence[Plan]) -> str:
    """Returns what tells a plan apart from others of its title: which of them it is."""
    same = [other for other in plans if _title(other) == _title(plan)]
    number = next((i for i, other in enumerate(same) if other is plan), 0)
    return f" ({chr(ord('a') + number)})" if len(same) > 1 else ""


def _title(plan: Plan) -> str:
    """Returns a short title such as "175b on v5p:8x8x8"."""
    return f"{plan['recipe'].rpartition(':')[2]} on {plan['topology']}"
