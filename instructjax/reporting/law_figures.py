"""Draws the laws of over-optimization that experiments/benchmarks/laws.py measures: gains against the KL.

Results are its laws.json: arms, each with points and fits of best of n and of PPO, and two questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instructjax.evaluation.overoptimization import LAWS, Fit, Method
from instructjax.reporting import style

TITLES: Mapping[Method, str] = {"best of n": "best of n", "ppo": "PPO"}

Results = Mapping[str, Any]
Arm = Mapping[str, Any]


def plain(results: Results) -> list[Arm]:
    """Returns the arms of noisy labels with the first KL coefficient."""
    first = results["arms"][0]["kl_coefficient"]
    return [arm for arm in results["arms"] if arm["labels"] == "noisy" and arm["kl_coefficient"] == first]


@style.talk
def gold_and_proxy(results: Results) -> Figure:
    """Draws gold gains of both methods with their laws, and the proxy reward of PPO, for each size."""
    arms = plain(results)
    sizes = list(dict.fromkeys(arm["size"] for arm in arms))
    figure, panes = style.grid(3 * len(sizes), columns=len(sizes), height=2.6)
    panels = iter(panes)
    for method in LAWS:
        for size in sizes:
            axes = next(panels)
            for place, arm in enumerate(arm for arm in arms if arm["size"] == size):
                _draw_law(axes, arm, method, style.color(place))
            axes.set_title(f"{TITLES[method]}, {size}")
    for size in sizes:
        axes = next(panels)
        for place, arm in enumerate(arm for arm in arms if arm["size"] == size):
            _draw_points(axes, arm["ppo"]["points"], lambda point: point["proxy"], style.color(place), "--")
        axes.set_title(f"PPO's reward, {size}")
    _label(panes, len(sizes), ["gain in quality", "gain in quality", "reward (RM)"])
    counts = sorted({arm["comparisons"] for arm in arms})
    handles = [
        Line2D([], [], color=style.color(place), linewidth=3, label=f"{count:,} rankings")
        for place, count in enumerate(counts)
    ]
    style.legend_above(figure, handles, columns=4)
    return figure


@style.talk
def questions(results: Results) -> Figure:
    """Draws PPO with different KL coefficients, and with noisy and exact labels."""
    figure, panes = style.grid(2, height=4.4)
    first, *_ = {arm["kl_coefficient"] for arm in results["arms"][:1]}
    largest = max(plain(results), key=lambda arm: (arm["parameters"], arm["comparisons"]))
    penalized = [arm for arm in results["arms"] if arm["kl_coefficient"] != first]
    for place, arm in enumerate([largest, *penalized]):
        _draw_gain(panes[0], arm, style.color(place), f"KL coefficient {arm['kl_coefficient']:g}", "-")
    names = {arm["name"]: arm for arm in results["arms"]}
    for place, row in enumerate(results["noise"]):
        for labels, line in (("noisy", "-"), ("exact", "--")):
            label = f"{row['comparisons']:,}, {labels}"
            _draw_gain(panes[1], names[row[labels]], style.color(place), label, line)
    _label(panes, 2, ["gain in quality"])
    for axes, title, columns in zip(panes, ("KL penalty", "rankings and labels"), (1, 2), strict=True):
        axes.set_title(title)
        style.legend_below(axes, columns=columns)
    return figure


def _draw_law(axes: Axes, arm: Arm, method: Method, color: str) -> None:
    found = arm[method]
    _draw_points(axes, found["points"], lambda point: point["gain"]["mean"], color, "")
    fit = found["fits"][LAWS[method]]
    kl = np.linspace(0, np.sqrt(max(point["kl"] for point in found["points"])), 100) ** 2
    law = Fit(fit["law"], fit["alpha"]["mean"], fit["beta"]["mean"], fit["r_squared"])
    axes.plot(np.sqrt(kl), law.predict(kl), color=color, linewidth=1.2)


def _draw_gain(axes: Axes, arm: Arm, color: str, label: str, line: str) -> None:
    _draw_points(axes, arm["ppo"]["points"], lambda point: point["gain"]["mean"], color, line, label)


def _draw_points(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float],
    color: str,
    line: str,
    label: str = "",
) -> None:
    x, y = np.sqrt([point["kl"] for point in points]), [value(point) for point in points]
    axes.plot(x, y, color=color, linestyle=line, linewidth=1.2, marker="o", markersize=2.5, label=label or "_")


def _label(panes: Sequence[Axes], columns: int, names: Sequence[str]) -> None:
    """Names the axes at the left and at the bottom, and gives those of a row the same range."""
    for place, axes in enumerate(panes):
        if place % columns:
            axes.sharey(panes[place - place % columns])
        axes.grid(alpha=0.3)
        axes.set_xlabel(r"$\sqrt{\mathrm{KL}}$" if place >= len(panes) - columns else "")
        axes.set_ylabel(names[place // columns] if place % columns == 0 else "")
