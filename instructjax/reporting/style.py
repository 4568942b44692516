"""The look of all figures: text that is readable on a slide and on a phone, and legends outside the axes.

The palette is that of Okabe and Ito, which color-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F")
WIDTH = 7.2  # inches; 12 points on this width are 8 pixels on a phone of 360
CHANCE: Mapping[str, Any] = {"color": "black", "linewidth": 1.0, "linestyle": ":", "zorder": 0}

_SETTINGS: Any = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
}

talk = matplotlib.rc_context(_SETTINGS)  # decorates a function that draws


def grid(panels: int, *, columns: int = 2, height: float = 3.0, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels, row by row.

    Args:
      panels: the number of panels.
      columns: the largest number of panels in a row.
      height: of a row, in inches.
      width: of the figure, in inches.
    """
    columns = max(1, min(panels, columns))
    rows = max(1, -(-panels // columns))
    figure = Figure(figsize=(width, height * rows))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.04)
    return figure, [figure.add_subplot(rows, columns, 1 + i) for i in range(panels)]


@talk
def empty(text: str) -> Figure:
    """Returns a figure that says why there is nothing to draw."""
    figure = Figure(figsize=(WIDTH, 0.8))
    figure.text(0.5, 0.5, textwrap.fill(text, 80), ha="center", va="center")
    return figure


def legend_below(axes: Axes, handles: Sequence[Artist] | None = None, columns: int = 1) -> None:
    """Adds a legend under the axes and their label."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        drop = 3.4 if axes.get_xlabel() else 2.0  # in font sizes
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=drop, ncols=columns)


def legend_above(figure: Figure, handles: Sequence[Artist], columns: int = 1) -> None:
    """Adds a legend above all panels."""
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def note(figure: Figure, text: str) -> None:
    """Adds a line below all panels, if there is a text."""
    if text:
        figure.supxlabel(textwrap.fill(text, 84), fontsize=10, color="#444444")


def chance(axes: Axes, value: float = 0.5) -> Artist:
    """Draws the line of a coin flip, and returns it for a legend."""
    return axes.axhline(value, label="chance", **CHANCE)


def color(index: int) -> str:
    """Returns a color of the palette, which repeats."""
    return COLORS[index % len(COLORS)]


def name_columns(axes: Axes, names: Sequence[str], room: float = WIDTH) -> None:
    """Labels the columns 0, 1, ... of the axes, at an angle if the names would overlap.

    Args:
      axes: where to draw.
      names: one per column; a name may have several lines.
      room: the width of the axes in inches.
    """
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    tilted: Mapping[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    crowded = 0.09 * (longest + 1) * len(names) > room - 0.7
    axes.set_xticks(range(len(names)), names, **(tilted if crowded else {}))
    axes.set_xlim(-0.5, len(names) - 0.5)


def wrapped(label: str, width: int = 16) -> str:
    """Wraps a label into lines of at most `width` characters; a longer word keeps its own line."""
    return textwrap.fill(label, width, break_long_words=False)
