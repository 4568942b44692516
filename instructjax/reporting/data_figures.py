"""Draws the records of a run next to the paper's: lengths of prompts, and use cases."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instructjax.reporting import paper_tables, style
from instructjax.reporting.data_report import Summary, shares_of_use_cases


@style.talk
def lengths(summary: Summary, enough: int) -> Figure:
    """Draws the lengths of prompts as boxes from quartile to quartile, next to the paper's Table 9.

    Args:
      summary: see `data/summary.py`.
      enough: the number of prompts of a split to draw it.
    """
    boxes: list[tuple[str, Sequence[float], str]] = []
    for name, splits in summary.items():
        for split, found in splits.items():
            ours, paper = found["table9"].get("prompt"), paper_tables.LENGTHS.get((name, split))
            if ours and ours[0] >= enough:
                boxes.append((f"{name}, {split}", ours, style.COLORS[0]))
                boxes += [("the paper's", paper, style.COLORS[1])] if paper else []
    figure, (axes,) = style.grid(1, height=1.2 + 0.42 * len(boxes))
    for place, (_, statistics, color) in enumerate(boxes):
        _box(axes, -place, statistics, color)
    axes.set_yticks([-place for place in range(len(boxes))], [label for label, _, _ in boxes])
    axes.set_xscale("log")
    axes.set_xlabel("tokens of a prompt: shortest, quartiles, longest")
    return figure


def _box(axes: Axes, place: float, statistics: Sequence[float], color: str) -> None:
    _, _, _, least, lower, median, upper, most = statistics
    axes.plot([max(least, 1), most], [place, place], color=color)
    axes.barh(place, upper - lower, 0.6, left=lower, color=color)
    axes.plot([median, median], [place - 0.3, place + 0.3], color="white", linewidth=2)


@style.talk
def use_cases(summary: Summary, enough: int) -> Figure:
    """Draws the shares of use cases in training, next to the paper's Table 1.

    Args:
      summary: see `data/summary.py`.
      enough: the number of records with a use case to draw a set.
    """
    shown = {
        name: {case.lower(): share for case, share in shares_of_use_cases(splits["train"]).items()}
        for name, splits in summary.items()
        if "train" in splits and sum(splits["train"]["use_cases"].values()) >= enough
    }
    shown["the paper's"] = dict(paper_tables.USE_CASES)
    cases = list(dict.fromkeys(case for shares in reversed(shown.values()) for case in shares))
    figure, (axes,) = style.grid(1, height=1.5 + 0.2 * len(cases) * len(shown))
    width = 0.8 / len(shown)
    for i, (name, shares) in enumerate(shown.items()):
        places = [-place - i * width for place in range(len(cases))]
        axes.barh(places, [shares.get(case, 0) for case in cases], width, label=name, color=style.color(i))
    axes.set_yticks([-place - 0.4 + width / 2 for place in range(len(cases))], cases)
    axes.set_xlabel("% of the records with a use case")
    style.legend_below(axes, columns=len(shown))
    return figure
