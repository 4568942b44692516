"""Draws training curves from metrics.jsonl: of one stage while it runs, of several runs, of several seeds.

The input is the lines of a stage's metrics.jsonl (`runs/metrics_file.py::read`). Metrics that
a stage does not report are left out, so any stage can be drawn, including a guest's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from instructjax.reporting import figures, style
from instructjax.runs import metrics_file

Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl

_DASHES = ("-", "--", ":", "-.", (0, (1, 4)))
_PAIRS = {"accuracy", "validation_accuracy"}  # shares of pairs, of which half are right by chance
_FLAT = 0.35  # of a curve's range, for `is_flat`


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of a figure.

    Attributes:
      title: the quantity, with its unit.
      curves: the legend's label of each metric.
      is_loss: whether its axes may be logarithmic.
    """

    title: str
    curves: Mapping[str, str]
    is_loss: bool = False


HELDOUT = "held-out prompts"
PANELS = (
    Panel(
        "loss",
        {
            "loss": "training",
            "validation_loss": "held-out rankings",
            "demonstration_loss": "held-out demonstrations",
            "text_loss": "held-out text",
            "ptx_loss": "ptx",
        },
        is_loss=True,
    ),
    Panel("accuracy", {"token_accuracy": "next token", "accuracy": "pairs", "validation_accuracy": "held-out pairs"}),
    Panel("reward (RM)", {"reward": "rollouts", "validation_reward": HELDOUT}),
    Panel("KL to initial policy (nats)", {"kl": "rollouts", "validation_kl": HELDOUT}),
    Panel("true quality", {"true_quality": HELDOUT}),
    Panel("entropy (nats per token)", {"entropy": "entropy"}),
    Panel("largest |ratio - 1|", {"max_ratio_deviation": "all minibatches", "first_ratio_deviation": "the first"}),
    Panel("share of clipped tokens", {"clip_fraction": "policy", "value_clip_fraction": "value"}),
    Panel("value and return", {"value": "value", "return": "return"}),
    Panel("explained variance of returns", {"explained_variance": "variance"}),
    Panel("tokens of a response", {"response_tokens": "tokens"}),
    Panel("gradient norm", {"gradient_norm": "norm"}),
)


def curve(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [n] and values [n] of one metric, from the lines that report it."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def mean_and_range(runs: Sequence[Lines], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps, and the mean, minimum and maximum of a metric over runs, at the steps that all runs report."""
    curves = [dict(zip(*curve(lines, name), strict=True)) for lines in runs]
    steps = sorted(set.intersection(*(set(values) for values in curves)))
    values = np.array([[values[step] for step in steps] for values in curves]).reshape(len(curves), len(steps))
    return np.array(steps, np.int64), values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def reported_panels(runs: Sequence[Lines], panels: Sequence[Panel] = PANELS) -> list[Panel]:
    """Returns the panels with at least one metric that a run reports, reduced to the metrics that are reported."""
    reported = {name for lines in runs for line in lines for name in line}
    kept = [
        dataclasses.replace(panel, curves={name: label for name, label in panel.curves.items() if name in reported})
        for panel in panels
    ]
    return [panel for panel in kept if panel.curves]


@dataclasses.dataclass(frozen=True)
class Level:
    """A horizontal line in the panels of a metric.

    Attributes:
      metric: the panels with this metric have the line.
      value: its height.
      label: its entry in the legend.
      group: the label of the group whose color it has; black if there is only one group.
    """

    metric: str
    value: float
    label: str
    group: str = ""


def draw(runs: Mapping[str, Lines], panels: Sequence[Panel] = PANELS) -> Figure:
    """Draws the reported panels.

    With one run, each metric has a color. With several runs, each run has a color.

    Args:
      runs: the lines of each run, by its label.
      panels: the panels to draw.
    """
    return draw_groups({label: [lines] for label, lines in runs.items()}, panels)


@style.talk
def draw_groups(
    groups: Mapping[str, Sequence[Lines]],
    panels: Sequence[Panel] = PANELS,
    *,
    unfinished: Mapping[str, Sequence[Lines]] | None = None,
    levels: Sequence[Level] = (),
) -> Figure:
    """Draws groups of runs that differ only in their seed: their mean, and a band from the minimum to the maximum.

    With one group, each metric has a color. With several groups, each group has a color,
    even those without curves. A panel whose curves are flat on linear axes is drawn on logarithmic ones.

    Args:
      groups: the lines of each run of a group, by the group's label.
      panels: the panels to draw.
      unfinished: lines of runs that are not in the means; each is a thin line in its group's color.
      levels: horizontal lines.
    """
    unfinished = unfinished or {}
    labels = list(dict.fromkeys([*groups, *unfinished]))
    everything = [lines for runs in (*groups.values(), *unfinished.values()) for lines in runs]
    kept = reported_panels(everything, panels)
    if not kept:
        return style.empty("There are no curves to draw.")
    figure, panes = _grid(kept)
    for axes, panel in zip(panes, kept, strict=True):
        for i, label in enumerate(labels):
            for j, (name, text) in enumerate(panel.curves.items()):
                dash, color = (_DASHES[j], style.color(i)) if len(labels) > 1 else ("-", style.color(j))
                full = ", ".join([label] * (len(labels) > 1) + [text] * (len(panel.curves) > 1))
                _draw_seeds(axes, groups.get(label, ()), name, color=color, linestyle=dash, label=full)
                for lines in unfinished.get(label, ()):
                    steps, values = curve(lines, name)
                    axes.plot(steps, values, linestyle=dash, color=color, linewidth=0.7, label=f"{full}, unfinished")
        _set_scale(axes, panel)
        _finish(axes, panel, labels, levels)
    if len(labels) > 1:
        handles = [
            Line2D([], [], color=style.color(i), linewidth=3, label=label)
            for i, label in enumerate(labels)
            if reported_panels([*groups.get(label, ()), *unfinished.get(label, ())], panels)
        ]
        style.legend_above(figure, handles, columns=2 if max(map(len, labels)) < 30 else 1)
    return figure


def _draw_seeds(axes: Axes, runs: Sequence[Lines], name: str, **look: Any) -> None:
    """Draws the mean of a metric over runs and, if there are several, the band. Runs without it are left out."""
    reporting = [lines for lines in runs if len(curve(lines, name)[0])]
    if not reporting:
        return
    steps, mean, low, high = mean_and_range(reporting, name)
    axes.plot(steps, mean, marker="." if len(steps) < 30 else None, linewidth=1.5, **look)
    if len(reporting) > 1:
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.25, linewidth=0)


def is_flat(steps: np.ndarray, values: np.ndarray) -> bool:
    """Returns whether a curve falls to two thirds or less, mostly in its first fifth, so linear axes hide the rest."""
    if len(steps) < 8 or not np.isfinite(values).all() or values[-1] > 2 / 3 * values[0]:
        return False
    late = values[steps >= steps[0] + 0.2 * (steps[-1] - steps[0])]
    return bool(np.ptp(late) < _FLAT * np.ptp(values))


def _set_scale(axes: Axes, panel: Panel) -> None:
    """Makes the axes of a loss logarithmic if a curve is flat on linear ones: steps, and losses over a factor of 2."""
    lines = [line.get_xydata() for line in axes.lines if len(np.asarray(line.get_xdata()))]
    if not (panel.is_loss and any(is_flat(*np.asarray(points).T) for points in lines)):
        return
    steps, values = np.concatenate([np.asarray(points) for points in lines]).T
    axes.set_xscale("symlog", linthresh=float(steps[steps > 0].min()), linscale=0.3)
    axes.set_xlabel("step (logarithmic)")
    if values.min() > 0 and values.max() > 2 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    ticks = [tick for tick in (0, *np.outer(10.0 ** np.arange(7), (1, 3)).ravel()) if tick <= steps.max()]
    axes.set_xticks([t for t in ticks if t == 0 or t >= steps[steps > 0].min()])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, panel: Panel, labels: Sequence[str], levels: Sequence[Level]) -> None:
    """Adds horizontal lines, and the legend under the panel."""
    look: dict[str, Any]
    handles: list[Artist] = []
    if len(panel.curves) > 1:
        for j, text in enumerate(panel.curves.values()):
            look = {"linestyle": _DASHES[j], "color": "black"} if len(labels) > 1 else {"color": style.color(j)}
            handles.append(Line2D([], [], label=text, **look))
    for level in levels:
        if level.metric in panel.curves:
            color = style.color(labels.index(level.group)) if len(labels) > 1 and level.group in labels else "black"
            look = {"linestyle": (0, (6, 3)), "linewidth": 1.2, "label": level.label}
            axes.axhline(level.value, color=color, **look)
            if level.label not in [handle.get_label() for handle in handles]:
                handles.append(Line2D([], [], color="black", **look))
    if _PAIRS & set(panel.curves):
        handles.append(style.chance(axes))
    style.legend_below(axes, handles)


def redraw(directory: epath.PathLike) -> None:
    """Redraws DIRECTORY/curves.png from DIRECTORY/metrics.jsonl."""
    directory = epath.Path(directory)
    figures.save(draw({directory.name: metrics_file.read(directory / "metrics.jsonl")}), directory / "curves.png")


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Formats a curve as at most `width` characters, from its minimum (▁) to its maximum (█)."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return ""
    parts = [part.mean() for part in np.array_split(finite, min(width, len(finite)))]
    low, high = min(parts), max(parts)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[round(7 * (part - low) / (high - low))] if high > low else blocks[0] for part in parts)


def _grid(panels: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    figure, panes = style.grid(len(panels))
    for axes, panel in zip(panes, panels, strict=True):
        axes.grid(axis="y", alpha=0.3)
        single = [label for label in panel.curves.values() if len(panel.curves) == 1 and label not in panel.title]
        axes.set_title(", ".join([panel.title, *single]))
        axes.set_xlabel("step")
    return figure, panes
