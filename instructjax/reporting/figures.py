"""Draws the figures of a report from results and metrics."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from instructjax import files
from instructjax.reporting import style

MODELS = {
    "gpt": ("GPT", "#7F7F7F"),
    "gpt_prompted": ("GPT\n(prompted)", "#E69F00"),
    "sft": ("SFT", "#0072B2"),
    "ppo": ("PPO", "#D55E00"),
    "ppo_ptx": ("PPO-ptx", "#009E73"),
}
_GUESTS = ("#56B4E9", "#F0E442")
_REFERENCE = "#CC79A7"

Results = Mapping[str, Any]


def draw(results: Results, metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Figure]:
    """Draws all figures for which there are numbers.

    Args:
      results: the content of results.json.
      metrics: for each stage, the lines of its metrics.jsonl. Only "ppo" and "ppo_ptx" are drawn.

    Returns:
      Figures by name: "win_rates", "ppo", "pretrain_loss", "human".
    """
    figures = {
        "win_rates": win_rates(results),
        "ppo": ppo_curves(metrics),
        "pretrain_loss": pretrain_loss(results),
        "human": human(results),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def styles(models: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the label and color of the paper's models and then of guests, such as "dpo".

    Args:
      models: keys of `models` in results.json.
    """
    guests = [model for model in models if model not in MODELS]
    return MODELS | {guest: (guest.upper(), color) for guest, color in zip(guests, itertools.cycle(_GUESTS))}


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160)
    path = epath.Path(path)
    files.write_bytes(path, data.getvalue())


@style.talk
def win_rates(results: Results) -> Figure | None:
    """Draws win rates against SFT by training and held-out labelers, as in the paper's Figures 1 and 3.

    Returns:
      The figure, or None if no model has a win rate.
    """
    shown = styles(results.get("models", {}))
    rates = {
        (model, labelers): estimate
        for model in shown
        for labelers, estimate in (lookup(results, "models", model, "win_rate_vs_sft") or {}).items()
        if estimate
    }
    if not rates:
        return None
    models = [model for model in shown if any(key[0] == model for key in rates)]
    figure, (axes,) = _figure(1, height=3.8)
    for labelers, name, shift, marker in (
        ("training", "training labelers", -0.12, "o"),
        ("heldout", "held-out labelers", 0.12, "s"),
    ):
        for x, model in enumerate(models):
            if (estimate := rates.get((model, labelers))) is not None:
                interval(axes, x + shift, estimate, shown[model][1], marker, filled=labelers == "training")
        # This entry is for the legend only: colors stand for models.
        face = "black" if labelers == "training" else "white"
        axes.plot([], [], marker, color="black", markerfacecolor=face, label=name)
    style.chance(axes)
    axes.set_ylabel("win rate against SFT")
    axes.set_ylim(0, max(1.0, max(e["high"] for e in rates.values())))
    _name_models(axes, [shown[model][0] for model in models])
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=3)
    axes.set_title("Preferred to SFT, with 95 % intervals")
    return figure


@style.talk
def ppo_curves(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Draws reward, KL to the initial policy and, if known, true quality over the iterations of PPO.

    Returns:
      The figure, or None if there are no metrics of PPO.
    """
    panels = {"reward": "reward (RM)", "kl": "KL to initial policy (nats)", "true_quality": "true quality"}
    curves = {
        (key, stage): ([line["step"] for line in lines], [line[key] for line in lines])
        for key in panels
        for stage in ("ppo", "ppo_ptx")
        if (lines := [line for line in metrics.get(stage, ()) if line.get(key) is not None])
    }
    if not curves:
        return None
    shown = [key for key in panels if any(curve[0] == key for curve in curves)]
    figure, panes = _figure(len(shown), height=3.2)
    for axes, key in zip(panes, shown, strict=True):
        for stage in ("ppo", "ppo_ptx"):
            if (key, stage) in curves:
                steps, values = curves[key, stage]
                name, color = MODELS[stage]
                dense = len(steps) > 30
                axes.plot(steps, values, "-" if dense else ".-", color=color, linewidth=1.5, label=name)
        axes.set_title(panels[key])
        axes.set_xlabel("PPO iteration")
        axes.grid(axis="y", alpha=0.3)
    style.legend_above(figure, panes[0].get_legend_handles_labels()[0], columns=2)
    return figure


@style.talk
def pretrain_loss(results: Results) -> Figure | None:
    """Draws each model's loss on pretraining text: the alignment tax, and the share that PPO-ptx takes back.

    Returns:
      The figure, or None if no model has a loss.
    """
    shown = styles(results.get("models", {}))
    losses = {model: loss for model in shown if (loss := lookup(results, "models", model, "pretrain_loss")) is not None}
    losses.pop("gpt_prompted", None)  # the same weights as GPT
    if not losses:
        return None
    figure, (axes,) = _figure(1, height=3.2)
    bars = axes.bar(range(len(losses)), list(losses.values()), color=[shown[model][1] for model in losses], width=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=2)
    if "gpt" in losses:
        axes.axhline(losses["gpt"], color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(0, 1.12 * max(losses.values()))
    _name_models(axes, [shown[model][0] for model in losses])
    axes.set_title("Loss on held-out pretraining text")
    return figure


@style.talk
def human(results: Results) -> Figure | None:
    """Draws the measures on human data.

    The left panel has the accuracy of the reward model next to its baselines, and the right
    panel the share of facts that each policy states.

    Returns:
      The figure, or None if the run is not on human data.
    """
    measures = results.get("human")
    if not measures:
        return None
    figure, (left, right) = _figure(2, height=4.6)
    names = {"length": "length\nbaseline", "reward_model": "reward\nmodel", "raters": "another\nrater"}
    lowest, highest = 0.47, 0.88
    for raters, name, shift, marker in (
        ("single", "single raters", -0.12, "o"),
        ("averaged", "averaged raters", 0.12, "s"),
    ):
        for x, predictor in enumerate(names):
            if (estimate := lookup(measures, "accuracy", raters, predictor)) is not None:
                lowest, highest = min(lowest, estimate["low"]), max(highest, estimate["high"])
                color = MODELS["ppo_ptx"][1] if predictor == "reward_model" else MODELS["gpt"][1]
                interval(left, x + shift, estimate, color, marker, filled=raters == "single")
        face = "black" if raters == "single" else "white"
        left.plot([], [], marker, color="black", markerfacecolor=face, label=f"against {name}")
    style.chance(left)
    left.set_xticks(range(len(names)), list(names.values()))
    left.set_xlim(-0.5, len(names) - 0.5)
    left.set_ylim(lowest - 0.02, highest + 0.02)
    left.set_ylabel("share of untied pairs")
    left.set_title("Held-out rankings predicted")
    style.legend_above(figure, left.get_legend_handles_labels()[0], columns=2)

    facts = measures.get("facts_stated") or {}
    shown = styles(results.get("models", {}))
    models = [model for model in shown if facts.get(model)]
    for x, model in enumerate(models):
        interval(right, x, facts[model], shown[model][1], "o", filled=True)
    if people := facts.get("references"):
        right.axhline(people["mean"], color=_REFERENCE, linewidth=1.2, linestyle="--", zorder=0)
        right.annotate(
            "people", (0.01, people["mean"]), xycoords=("axes fraction", "data"), va="bottom", color=_REFERENCE
        )
    right.set_ylim(0, 1.05)
    right.set_ylabel("share of facts")
    right.set_title("Facts stated by the text")
    _name_models(right, [shown[model][0] for model in models])
    return figure


def lookup(tree: Mapping[str, Any] | None, *keys: str) -> Any:
    """Returns the value under a path of keys, or None if a key is missing or null."""
    for key in keys:
        if tree is None:
            return None
        tree = tree.get(key)
    return tree


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    return style.grid(panels, columns=panels, height=height, width=style.WIDTH if panels < 3 else 3.7 * panels)


def interval(axes: Axes, x: float, estimate: Mapping[str, float], color: str, marker: str, *, filled: bool) -> None:
    """Draws an estimate: its mean as a mark, and its interval as a bar."""
    mean = estimate["mean"]
    reach = [[mean - estimate["low"]], [estimate["high"] - mean]]
    face = color if filled else "white"
    axes.errorbar(x, mean, reach, fmt=marker, color=color, markerfacecolor=face, capsize=3, markersize=7)


def _name_models(axes: Axes, names: Sequence[str]) -> None:
    figure = axes.get_figure(root=True)
    width = figure.get_figwidth() if figure else style.WIDTH
    style.name_columns(axes, names, width / axes.get_subplotspec().get_gridspec().ncols)  # type: ignore[union-attr]
