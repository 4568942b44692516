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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instructjax.reporting import figures
from instructjax.runs import metrics_file

Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F")
_DASHES = ("-", "--", ":", "-.")
_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of a figure.

    Attributes:
      title: the quantity, with its unit.
      curves: the legend's label of each metric.
    """

    title: str
    curves: Mapping[str, str]


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
        Panel(panel.title, {name: label for name, label in panel.curves.items() if name in reported})
        for panel in panels
    ]
    return [panel for panel in kept if panel.curves]


def draw(runs: Mapping[str, Lines], panels: Sequence[Panel] = PANELS) -> Figure:
    """Draws the reported panels.

    With one run, each metric has a color. With several runs, each run has a color.

    Args:
      runs: the lines of each run, by its label.
      panels: the panels to draw.
    """
    kept = reported_panels(list(runs.values()), panels)
    figure, panes = _grid(kept)
    for axes, panel in zip(panes, kept, strict=True):
        for i, (run, lines) in enumerate(runs.items()):
            for j, (name, label) in enumerate(panel.curves.items()):
                color, dash = (i, _DASHES[j]) if len(runs) > 1 else (j, "-")
                text = ", ".join([run] * (len(runs) > 1) + [label] * (len(panel.curves) > 1))
                steps, values = curve(lines, name)
                if not len(steps):
                    continue
                marker = "." if len(steps) < 30 else None
                axes.plot(steps, values, linestyle=dash, marker=marker, color=_color(color), linewidth=1.3, label=text)
        if len(runs) > 1 or len(panel.curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def draw_seeds(runs: Sequence[Lines], panels: Sequence[Panel] = PANELS) -> Figure:
    """Draws runs that differ only in their seed: their mean, and a band from the minimum to the maximum."""
    kept = reported_panels(runs, panels)
    figure, panes = _grid(kept)
    for axes, panel in zip(panes, kept, strict=True):
        for i, (name, label) in enumerate(panel.curves.items()):
            steps, mean, low, high = mean_and_range(runs, name)
            axes.plot(steps, mean, color=_color(i), linewidth=1.3, label=label)
            axes.fill_between(steps, low, high, color=_color(i), alpha=0.25, linewidth=0)
        if len(panel.curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


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
    columns = max(1, min(len(panels), _COLUMNS))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), dpi=72, layout="constrained")
    panes = [figure.add_subplot(rows, columns, 1 + i) for i in range(len(panels))]
    for axes, panel in zip(panes, panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        single = [label for label in panel.curves.values() if len(panel.curves) == 1 and label not in panel.title]
        axes.set_title(", ".join([panel.title, *single]), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
    return figure, panes


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
