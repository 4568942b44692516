"""Compares groups of runs by the measures of results.json.

With one group, each model has a color. With several, each group has a color. For a group of several
seeds, the mark is the mean and the bar goes from the lowest seed to the highest. For a single run, the
bar is its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instructjax.reporting import style
from instructjax.reporting.figures import interval, lookup, styles
from instructjax.reporting.run_groups import Group, Run, format_missing

Estimate = Mapping[str, float]  # "mean", "low", "high"

LABELERS = {"training": ("training labelers", "o"), "heldout": ("held-out labelers", "s")}
BARS = "Bars: of several seeds from the least to the greatest, of one seed the 95 % interval."


def pooled(runs: Sequence[Run], *keys: str) -> Estimate | None:
    """Returns the mean of a measure over runs, with the range of the runs, or the interval if there is only one.

    Args:
      runs: the seeds of a group; those without the measure are left out.
      keys: the path of the measure in results.json: an estimate or a number.
    """
    found = [value for run in runs if (value := lookup(run.results, *keys)) is not None]
    if not found:
        return None
    if len(found) == 1 and isinstance(found[0], Mapping):
        return found[0]
    means = [value["mean"] if isinstance(value, Mapping) else value for value in found]
    return {"mean": float(np.mean(means)), "low": min(means), "high": max(means)}


def models_of(groups: Sequence[Group], *keys: str) -> dict[str, tuple[str, str]]:
    """Returns the label and color of each model for which a run has a measure, the paper's models first."""
    runs = [run for group in groups for run in group.runs]
    names = styles(dict.fromkeys(model for run in runs for model in run.results.get("models", {})))
    return {m: look for m, look in names.items() if any(lookup(run.results, "models", m, *keys) for run in runs)}


@style.talk
def win_rates(groups: Sequence[Group]) -> Figure:
    """Draws win rates against SFT by training and held-out labelers, with the line of chance."""
    models = models_of(groups, "win_rate_vs_sft")
    measured = _with(groups, "win_rate_vs_sft")
    if not measured:
        return style.empty("No run has win rates: they need simulated labelers, and an evaluation that is finished.")
    figure, (axes,) = style.grid(1, height=4.2 + 0.3 * len(measured))
    width = 0.8 / (2 * len(measured))
    for i, (group, group_color) in enumerate(measured):
        for j, (labelers, (_, marker)) in enumerate(LABELERS.items()):
            for x, (model, (_, model_color)) in enumerate(models.items()):
                estimate = pooled(group.runs, "models", model, "win_rate_vs_sft", labelers)
                if estimate:
                    color = group_color or model_color
                    at = x + width * (2 * i + j + 0.5 - len(measured))
                    interval(axes, at, estimate, color, marker, filled=labelers == "training")
    chance = style.chance(axes)
    style.name_columns(axes, [name for name, _ in models.values()])
    axes.set_ylim(0, 1)
    axes.set_ylabel("win rate against SFT")
    style.legend_above(figure, [*_group_handles(measured), *_labeler_handles(), chance], columns=2)
    missing = format_missing(groups, lambda run: _any(Group("", [run]), "win_rate_vs_sft"), "win rates")
    style.note(figure, f"{BARS} {missing}")
    return figure


@style.talk
def reward_accuracy(groups: Sequence[Group]) -> Figure:
    """Draws the share of held-out pairs that the reward model orders as a labeler does.

    Next to it is how often two labelers agree, with the line of chance. On human data, labelers
    are single raters.
    """
    columns = {
        group.label: {
            "training": pooled(group.runs, "reward_model", "intervals", "accuracy", "training"),
            "heldout": pooled(group.runs, "reward_model", "intervals", "accuracy", "heldout")
            or pooled(group.runs, "human", "accuracy", "single", "reward_model"),
            "agree_training": pooled(group.runs, "reward_model", "intervals", "labeler_agreement", "training"),
            "agree_heldout": pooled(group.runs, "reward_model", "intervals", "labeler_agreement", "heldout")
            or pooled(group.runs, "human", "accuracy", "single", "raters"),
        }
        for group in groups
    }
    columns = {label: found for label, found in columns.items() if any(found.values())}
    if not columns:
        return style.empty("No run has measured how often the reward model agrees with labelers.")
    # The paper's sections 4.1 and 3.4.
    columns["the paper"] = {
        "training": {"mean": 0.724, "low": 0.720, "high": 0.728},
        "heldout": {"mean": 0.696, "low": 0.687, "high": 0.705},
        "agree_training": {"mean": 0.726, "low": 0.711, "high": 0.741},
        "agree_heldout": {"mean": 0.773, "low": 0.760, "high": 0.786},
    }
    figure, (axes,) = style.grid(1, height=4.4)
    looks = {
        "training": (style.COLORS[0], "o", True, "RM, training labelers"),
        "heldout": (style.COLORS[0], "s", False, "RM, held-out labelers"),
        "agree_training": (style.COLORS[3], "o", True, "two training labelers agree"),
        "agree_heldout": (style.COLORS[3], "s", False, "two held-out labelers agree"),
    }
    for x, found in enumerate(columns.values()):
        for j, (measure, (color, marker, filled, _)) in enumerate(looks.items()):
            if estimate := found[measure]:
                interval(axes, x + 0.18 * (j - 1.5), estimate, color, marker, filled=filled)
    handles: list[Artist] = [
        Line2D([], [], linestyle="", marker=m, color=c, markerfacecolor=c if f else "white", label=text)
        for c, m, f, text in looks.values()
    ]
    handles.append(style.chance(axes))
    style.name_columns(axes, [style.wrapped(label) for label in columns])
    axes.set_ylabel("share of untied pairs")
    style.legend_above(figure, handles, columns=2)
    style.note(figure, f"{BARS} The paper's are the intervals of its text.")
    return figure


@style.talk
def pretrain_loss(groups: Sequence[Group]) -> Figure:
    """Draws each model's loss on pretraining text: the alignment tax, and the share that PPO-ptx takes back."""
    models = models_of(groups, "pretrain_loss")
    models.pop("gpt_prompted", None)  # the same weights as GPT
    measured = _with(groups, "pretrain_loss")
    if not measured:
        return style.empty("No run has measured the loss on pretraining text: the evaluation is not finished.")
    figure, (axes,) = style.grid(1, height=3.6 + 0.3 * len(measured))
    width = 0.8 / len(measured)
    for i, (group, group_color) in enumerate(measured):
        for x, (model, (_, model_color)) in enumerate(models.items()):
            if estimate := pooled(group.runs, "models", model, "pretrain_loss"):
                at = x + width * (i + 0.5 - len(measured) / 2)
                color = group_color or model_color
                axes.bar(at, estimate["mean"], 0.9 * width, color=color)
                axes.vlines(at, estimate["low"], estimate["high"], color="black", linewidth=1.2)
                tilt = 90 if len(measured) > 2 else 0
                axes.annotate(f"{estimate['mean']:.2f}", (at, estimate["high"]), (0, 3), rotation=tilt, **_ABOVE)
    axes.margins(y=0.15)
    style.name_columns(axes, [name for name, _ in models.values()])
    axes.set_ylabel("loss (nats per token)")
    style.legend_above(figure, _group_handles(measured), columns=2)
    return figure


_ABOVE: Mapping[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 10}


def _any(group: Group, measure: str) -> bool:
    return any(entry and entry.get(measure) for run in group.runs for entry in run.results.get("models", {}).values())


def _with(groups: Sequence[Group], measure: str) -> list[tuple[Group, str]]:
    """Returns the groups that have a measure with their colors, which are empty if there is only one such group."""
    found = [(group, style.color(i)) for i, group in enumerate(groups) if _any(group, measure)]
    return found if len(found) > 1 else [(group, "") for group, _ in found]


def _group_handles(groups: Sequence[tuple[Group, str]]) -> list[Artist]:
    """Returns the legend of groups: their colors, and their numbers of seeds."""
    return [
        Line2D([], [], color=color, linewidth=3, label=style.wrapped(f"{group.label}, {seeds(group)}", 36))
        for group, color in groups
        if color
    ]


def seeds(group: Group) -> str:
    """Returns the number of a group's runs that have results."""
    count = sum(bool(run.results) for run in group.runs)
    return f"{count} seed" + "s" * (count != 1)


def _labeler_handles() -> list[Artist]:
    return [
        Line2D([], [], linestyle="", marker=marker, color="black", markerfacecolor=face, label=name)
        for (name, marker), face in zip(LABELERS.values(), ("black", "white"), strict=True)
    ]
