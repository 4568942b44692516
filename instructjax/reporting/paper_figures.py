"""Draws our measures in the form of the paper's Figures 1, 3, 4 and 5, next to the numbers of the paper's text.

The paper's numbers are those that its text states. Most points of its charts are not in the text
and are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instructjax.reporting import style
from instructjax.reporting.figures import interval
from instructjax.reporting.group_figures import BARS, LABELERS, Estimate, models_of, pooled
from instructjax.reporting.run_groups import Group

_PAPER = "black"

# Section 4.1, 175B: the share of comparisons that PPO-ptx wins, with 95 % intervals.
_PREFERRED = (("to GPT", 0.85, 0.03), ("to GPT\n(prompted)", 0.71, 0.04), ("to SFT", 0.734, 0.02))
# Section 4.1, 175B: win rates against SFT in the comparison with FLAN and T0.
_PUBLIC = (("PPO-ptx", 0.734, 0.02), ("FLAN", 0.298, 0.02), ("T0", 0.268, 0.02))
# Section 4.1: hallucination on closed-domain tasks.
_HALLUCINATION = {"gpt": 0.41, "ppo_ptx": 0.21}

# Panels of Figure 4: the field of results.json, and whether the figure shows its complement.
_FIELDS = {
    "Attempts correct\ninstruction": ("fails_correct_instruction", True),
    "Follows explicit\nconstraints": ("satisfies_constraint", False),
    "Hallucinations": ("hallucination", False),
    "Uses language appropriate\nfor customer assistant": ("inappropriate_for_customer_assistant", True),
}


@style.talk
def figure_1(groups: Sequence[Group]) -> Figure:
    """Draws Figure 1: win rates against SFT by size of the model, by training labelers.

    The left panel has what the text of section 4.1 states: how often labelers prefer PPO-ptx.
    """
    if not (shown := _with(groups, "win_rate_vs_sft")):
        return style.empty("The paper's Figure 1 needs win rates, which no run has.")
    figure, (left, right) = style.grid(2, height=4.8 + 0.3 * len(shown))
    _stated(left, _PREFERRED, "The paper's text, 175B:\nPPO-ptx is preferred")
    _by_size(right, shown, "training")
    right.set_title("Ours, as in Figure 1:\nwin rate against SFT")
    _legend(figure, shown)
    style.note(figure, f"The points of the paper's Figure 1 are only in its chart. {BARS}")
    return figure


@style.talk
def figure_3(groups: Sequence[Group]) -> Figure:
    """Draws Figure 3: win rates against SFT by size of the model, by held-out and training labelers."""
    if not (shown := _with(groups, "win_rate_vs_sft")):
        return style.empty("The paper's Figure 3 needs win rates, which no run has.")
    figure, panes = style.grid(2, height=4.8 + 0.3 * len(shown))
    for axes, labelers in zip(panes, ("heldout", "training"), strict=True):
        _by_size(axes, shown, labelers)
        axes.set_title(f"Ours, as in Figure 3:\n{LABELERS[labelers][0]}")
    panes[0].set_ylabel("win rate against SFT")
    _legend(figure, shown)
    style.note(figure, f"The paper's own points are only in its chart, and not drawn. {BARS}")
    return figure


@style.talk
def figure_4(groups: Sequence[Group]) -> Figure:
    """Draws Figure 4: the share of answers with four of the fields that labelers set (Table 3).

    The paper's text states hallucination on closed-domain tasks. Ours counts all tasks.
    """
    if not (shown := _with(groups, "metadata")):
        return style.empty("The paper's Figure 4 needs labelers' flags of the answers, which no run has.")
    models = models_of(shown, "metadata")
    figure, panes = style.grid(len(_FIELDS), height=3.4)
    width = 0.8 / len(shown)
    for axes, (title, (field, complement)) in zip(panes, _FIELDS.items(), strict=True):
        for x, (model, (_, color)) in enumerate(models.items()):
            for i, group in enumerate(shown):
                if estimate := pooled(group.runs, "models", model, "metadata", field):
                    estimate = _complement(estimate) if complement else estimate
                    at = x + width * (i + 0.5 - len(shown) / 2)
                    axes.bar(at, estimate["mean"], 0.9 * width, color=color, alpha=1 / (1 + i), edgecolor="black")
                    axes.vlines(at, estimate["low"], estimate["high"], color="black", linewidth=1.2)
            if field == "hallucination" and model in _HALLUCINATION:
                axes.plot([x], [_HALLUCINATION[model]], "D", color="white", markeredgecolor=_PAPER, markersize=8)
        _name_bars(axes, [name for name, _ in models.values()])
        axes.set_ylim(0, 1.03)
        axes.set_title(title)
    _bars_legend(figure, shown, "the paper's text (175B, closed-domain tasks)")
    style.note(figure, "Shares of answers, as in the paper's Figure 4. Lines: least to greatest seed.")
    return figure


@style.talk
def figure_5(groups: Sequence[Group]) -> Figure:
    """Draws Figure 5: Likert scores, next to the win rates that the text states for the same models."""
    if not (shown := _with(groups, "likert")):
        return style.empty("The paper's Figure 5 needs Likert scores, which no run has.")
    models = models_of(shown, "likert")
    figure, (left, right) = style.grid(2, height=4.8)
    _stated(left, _PUBLIC, "The paper's text, 175B:\nwin rate against SFT")
    width = 0.8 / len(shown)
    for x, (model, (_, color)) in enumerate(models.items()):
        for i, group in enumerate(shown):
            if estimate := pooled(group.runs, "models", model, "likert"):
                at = x + width * (i + 0.5 - len(shown) / 2)
                right.bar(at, estimate["mean"], 0.9 * width, color=color, alpha=1 / (1 + i), edgecolor="black")
                right.vlines(at, estimate["low"], estimate["high"], color="black", linewidth=1.2)
    _name_bars(right, [name for name, _ in models.values()])
    right.set_ylim(1, 7)
    right.set_title("Ours, as in Figure 5:\nLikert score, held-out labelers")
    _bars_legend(figure, shown, "")
    style.note(
        figure,
        "The scores of the paper's Figure 5 are only in its chart. FLAN and T0 are arms of experiments/claims.py.",
    )
    return figure


def _with(groups: Sequence[Group], measure: str) -> list[Group]:
    """Returns the groups with a measure, the smallest models first."""
    return sorted((group for group in groups if models_of([group], measure)), key=_size)


def _size(group: Group) -> int:
    entries = [entry for run in group.runs for entry in run.results.get("models", {}).values() if entry]
    return max((entry.get("params") or 0 for entry in entries), default=0)


def _stated(axes: Axes, numbers: Sequence[tuple[str, float, float]], title: str) -> None:
    """Draws numbers that the paper's text states."""
    for x, (_, mean, half) in enumerate(numbers):
        estimate = {"mean": mean, "low": mean - half, "high": mean + half}
        interval(axes, x, estimate, _PAPER, "D", filled=False)
        axes.annotate(f"{mean:g}", (x, mean), (9, 0), textcoords="offset points", va="center", fontsize=11)
    style.chance(axes)
    axes.set_xticks(range(len(numbers)), [name for name, *_ in numbers])
    axes.set_xlim(-0.5, len(numbers) - 0.3)
    axes.set_ylim(0, 1)
    axes.set_title(title)


def _by_size(axes: Axes, groups: Sequence[Group], labelers: str) -> None:
    """Draws win rates by one group of labelers, one column per recipe, from the smallest model to the largest."""
    sizes = [_size(group) for group in groups]
    models = models_of(groups, "win_rate_vs_sft")
    for i, (model, (_, color)) in enumerate(models.items()):
        points = [
            (x + 0.13 * (i - (len(models) - 1) / 2), estimate)
            for x, group in enumerate(groups)
            if (estimate := pooled(group.runs, "models", model, "win_rate_vs_sft", labelers))
        ]
        for x, estimate in points:
            interval(axes, x, estimate, color, "o", filled=True)
        if sizes == sorted(set(sizes)):  # otherwise they are not models of increasing size
            axes.plot([x for x, _ in points], [estimate["mean"] for _, estimate in points], color=color, linewidth=1.2)
    style.chance(axes)
    names = [f"{style.wrapped(group.label)}\n{_count(size)}" for group, size in zip(groups, sizes, strict=True)]
    style.name_columns(axes, names, style.WIDTH / 2)
    axes.set_ylim(0, 1)


def _legend(figure: Figure, groups: Sequence[Group]) -> None:
    looks = models_of(groups, "win_rate_vs_sft").values()
    handles = [_mark(color, name.replace("\n", " ")) for name, color in looks]
    style.legend_above(figure, [*handles, Line2D([], [], label="chance", **style.CHANCE)], columns=3)


def _bars_legend(figure: Figure, groups: Sequence[Group], paper: str) -> None:
    """Adds the legend of bars. Several groups differ in shade, in the order of the bars."""
    look: dict[str, Any] = {"linestyle": "", "marker": "s", "markersize": 9, "markeredgecolor": "black"}
    handles = [
        Line2D([], [], color="#444444", alpha=1 / (1 + i), label=style.wrapped(group.label, 36), **look)
        for i, group in enumerate(groups)
        if len(groups) > 1
    ]
    if paper:
        handles.append(Line2D([], [], linestyle="", marker="D", color="white", markeredgecolor=_PAPER, label=paper))
    style.legend_above(figure, handles)


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    style.name_columns(axes, [name.replace("GPT\n(prompted)", "prompted") for name in names], style.WIDTH / 2)


def _mark(color: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", color=color, label=label)


def _complement(estimate: Estimate) -> Mapping[str, float]:
    return {"mean": 1 - estimate["mean"], "low": 1 - estimate["high"], "high": 1 - estimate["low"]}


def _count(size: int) -> str:
    """Formats a number of parameters: 0.5M."""
    unit, divisor = ("B", 1e9) if size >= 1e9 else ("M", 1e6)
    return f"{size / divisor:.2g}{unit}"
