"""Shows groups of runs as figures and text, for the notebooks.

The input is what `run_groups.load_groups` reads. Measures that a run lacks are left out, and the
figure names the runs that lack them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instructjax.reporting import curves, figures, style
from instructjax.reporting.curves import curve
from instructjax.reporting.figures import MODELS, lookup
from instructjax.reporting.run_groups import Group, Run, format_missing

_MARKERS = "os^Dv"  # of groups of runs
_GROUPS = {"heldout": "held-out"}  # of labelers


def stage(groups: Sequence[Group], name: str, panels: Sequence[curves.Panel] = curves.PANELS) -> Figure:
    """Draws the curves of one stage: for each group the mean of its finished seeds, with a band from lowest to highest.

    Unfinished runs are thin lines. For the reward model there are lines for chance and for how
    often labelers agree with each other.
    """
    begun = {group.label: [run for run in group.runs if run.metrics.get(name)] for group in groups}
    if not any(begun.values()):
        return style.empty(f"No run has begun the stage {name}.")
    done = {label: [run.metrics[name] for run in runs if run.is_finished(name)] for label, runs in begun.items()}
    unfinished = {
        label: [run.metrics[name] for run in runs if not run.is_finished(name)] for label, runs in begun.items()
    }
    levels = [level for group in groups if name == "reward" for level in _agreement(group)]
    figure = curves.draw_groups(done, panels, unfinished=unfinished, levels=levels)
    missing = format_missing(groups, lambda run: bool(run.metrics.get(name)), f"the stage {name}")
    thin = any(unfinished.values())
    style.note(figure, " ".join(filter(None, [missing, "Thin lines are unfinished runs." if thin else ""])))
    return figure


def _agreement(group: Group) -> list[curves.Level]:
    """Returns the line of labelers' agreement with each other, averaged over the runs that measured it."""
    found = [lookup(run.results, "reward_model", "labeler_agreement", "heldout") for run in group.runs]
    found += [lookup(run.results, "human", "accuracy", "single", "raters", "mean") for run in group.runs]
    known = [value for value in found if value is not None]
    label = "two labelers agree"
    return [curves.Level("validation_accuracy", float(np.mean(known)), label, group.label)] if known else []


def format_answers(run: Run, count: int = 5, seed: int = 0, models: Sequence[str] = tuple(MODELS)) -> str:
    """Formats the answers of each model to some prompts, drawn at random."""
    if not run.answers:
        return f"{run.name} has no answers: it was not evaluated."
    drawn = random.Random(seed).sample(range(len(run.answers)), min(count, len(run.answers)))
    parts = []
    for row in (run.answers[i] for i in sorted(drawn)):
        lines = [f"  {MODELS[model][0].replace(chr(10), ' '):15}{row[model]!r}" for model in models if model in row]
        parts.append("\n".join([row["prompt"], *lines]))
    return "\n\n".join(parts)


def format_stages(run: Run) -> str:
    """Formats the steps and seconds of each stage."""
    rows = [f"{'stage':10}{'steps':>7}{'seconds':>9}"]
    for name, lines in run.metrics.items():
        if lines:
            seconds = run.seconds.get(name, lines[-1].get("wall_seconds", 0.0))
            rows.append(
                f"{name:10}{lines[-1]['step']:7}{seconds:9.0f}{'' if run.is_finished(name) else '  unfinished'}"
            )
    if (total := lookup(run.results, "wall_seconds", "total")) is not None:
        rows.append(f"{'total':17}{total:9.0f}")
    return "\n".join(rows)


@style.talk
def overoptimization(groups: Sequence[Group]) -> Figure:
    """Draws reward and, if known, true quality against the policy's distance from the initial policy.

    The distance is the square root of the KL divergence, as in figure 1 of Gao et al. 2022. All
    measures are on held-out prompts. Colors are models, and marks are groups.
    """
    panels = {"validation_reward": "reward (RM)", "true_quality": "true quality"}
    runs = [(i, run) for i, group in enumerate(groups) for run in group.runs]
    drawn = [
        (name, i, stage)
        for name in panels
        for i, run in runs
        for stage in ("ppo", "ppo_ptx")
        if _path(run, stage, name)
    ]
    shown = [name for name in panels if any(name == found for found, *_ in drawn)]
    if not shown:
        return style.empty("No run has measured reward and KL on held-out prompts during PPO.")
    figure, panes = style.grid(len(shown), height=3.8)
    for axes, name in zip(panes, shown, strict=True):
        for stage in ("ppo", "ppo_ptx"):
            for i, run in runs:
                x, y = _path(run, stage, name) or ((), ())
                mark = _MARKERS[i % len(_MARKERS)]
                axes.plot(x, y, mark + "-", color=MODELS[stage][1], markersize=4, linewidth=1.2, alpha=0.8)
        axes.grid(alpha=0.3)
        axes.set_xlabel(r"$\sqrt{\mathrm{KL}}$ to the initial policy")
        axes.set_title(panels[name])
    stages = [stage for stage in ("ppo", "ppo_ptx") if any(stage == found for *_, found in drawn)]
    handles = [Line2D([], [], color=MODELS[stage][1], linewidth=3, label=MODELS[stage][0]) for stage in stages]
    seen = sorted({i for _, i, _ in drawn})
    if len(seen) > 1:
        look: dict[str, Any] = {"linestyle": "", "color": "black"}
        handles += [Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], label=groups[i].label, **look) for i in seen]
    style.legend_above(figure, handles, columns=2)
    style.note(figure, format_missing(groups, lambda run: bool(_path(run, "ppo_ptx", shown[0])), "these measures"))
    return figure


def _path(run: Run, stage: str, name: str) -> tuple[list[float], list[float]] | None:
    """Returns the distances from the initial policy, and a metric there; None if either was not measured."""
    lines = run.metrics.get(stage, ())
    kl = dict(zip(*curve(lines, "validation_kl"), strict=True))
    points = [
        (float(np.sqrt(max(kl[step], 0.0))), y) for step, y in zip(*curve(lines, name), strict=True) if step in kl
    ]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


@style.talk
def calibration(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draws the reward model's accuracy against its confidence. A calibrated model is on the diagonal.

    Args:
      found: for each group of raters, the bins of `agreement.calibration`.
    """
    if not found:
        return style.empty("No calibration was measured.")
    figure, (axes,) = style.grid(1, height=4.4)
    axes.grid(alpha=0.3)
    for (raters, bins), color in zip(found.items(), style.COLORS, strict=False):
        x, y = [part["predicted"] for part in bins], [part["right"] for part in bins]
        axes.plot(x, y, "o-", color=color, linewidth=1.5, label=f"{_GROUPS.get(raters, raters)} raters")
    axes.plot([0.5, 1], [0.5, 1], ":", color="black", linewidth=1.0, label="calibrated")
    axes.set_xlabel("predicted accuracy: mean of σ(difference of rewards)")
    axes.set_ylabel("share of pairs ordered as by raters")
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=3)
    return figure


def reward_calibration(groups: Sequence[Group]) -> Figure:
    """Draws the calibration of the first run that has measured it."""
    for run in (run for group in groups for run in group.runs):
        if found := lookup(run.results, "reward_model", "calibration") or lookup(run.results, "human", "calibration"):
            figure = calibration(found)
            style.note(figure, f"Run {run.name}.")
            return figure
    return style.empty("No run has measured the reward model's calibration.")


@style.talk
def answer_gradients(rewards: Sequence[float], gradients: Sequence[float], scores: Sequence[float]) -> Figure:
    """Draws the reward of each answer, with an arrow in the direction of a gradient step.

    Args:
      rewards: [K].
      gradients: [K], the gradient of the loss with respect to the rewards.
      scores: [K], the labeler's scores, which label the answers.
    """
    figure, (axes,) = style.grid(1, height=3.8)
    axes.grid(alpha=0.3)
    ends = [reward - 4 * gradient for reward, gradient in zip(rewards, gradients, strict=True)]
    axes.set_ylim(min(*rewards, *ends) - 0.2, max(*rewards, *ends) + 0.2)
    for k, (reward, end, score) in enumerate(zip(rewards, ends, scores, strict=True)):
        axes.plot([k], [reward], "o", color=style.COLORS[0], markersize=8)
        axes.annotate("", (k, end), (k, reward), arrowprops={"arrowstyle": "->", "color": style.COLORS[1], "lw": 2})
        axes.annotate(f"score {score:g}", (k, reward), (8, -3), textcoords="offset points")
    axes.set_xlim(-0.5, len(rewards) - 0.1)
    axes.set_xticks(range(len(rewards)), [f"answer {k}" for k in range(len(rewards))])
    axes.set_ylabel("reward, and the direction of a gradient step")
    return figure


def format_seeds(groups: Sequence[Group], key: str = "heldout") -> str:
    """Formats the win rate against SFT of each model in each run, with 95 % intervals, one table per group."""
    return "\n\n".join(_table(group, key) for group in groups)


def _table(group: Group, key: str) -> str:
    runs = [run for run in group.runs if lookup(run.results, "models", "sft", "win_rate_vs_sft", key)]
    if not runs:
        return f"{group.label}: no win rates"
    rows = [group.label, f"{'':16}" + "".join(f"{run.name:>20}" for run in runs)]
    for model, (name, _) in figures.styles(model for run in runs for model in run.results["models"]).items():
        cells = [lookup(run.results, "models", model, "win_rate_vs_sft", key) for run in runs]
        if any(cells):
            texts = [f"{c['mean']:.3f} ± {(c['high'] - c['low']) / 2:.3f}" if c else "" for c in cells]
            rows.append(f"{name.replace(chr(10), ' '):16}" + "".join(f"{text:>20}" for text in texts))
    return "\n".join(rows)


def format_selection(groups: Sequence[Group]) -> str:
    """Formats the SFT checkpoint that the reward model chose in each run, and the mean reward of each candidate."""
    rows = [f"{'run':20}{'chosen':>8}  candidates"]
    for run in (run for group in groups for run in group.runs):
        if found := run.results.get("sft_selection"):
            scores = ", ".join(f"{step}: {reward:.3f}" for step, reward in found["reward"].items())
            rows.append(f"{run.name:20}{found['step']:8}  {scores}")
        else:
            rows.append(f"{run.name:20}{'':8}  not evaluated")
    return "\n".join(rows)


def format_ppo(groups: Sequence[Group]) -> str:
    """Formats the last line of PPO and PPO-ptx of each run."""
    shown = {
        "reward": "reward",
        "kl": "KL",
        "entropy": "entropy",
        "text_loss": "text loss",
        "validation_reward": "held-out",
    }
    rows = [f"{'stage':9}{'run':20}{'step':>5}" + "".join(f"{title:>10}" for title in shown.values())]
    for stage_name in ("ppo", "ppo_ptx"):
        for run in (run for group in groups for run in group.runs):
            if lines := run.metrics.get(stage_name):
                last = [curve(lines, name)[1][-1:] for name in shown]
                cells = "".join(f"{value[0]:10.3f}" if len(value) else f"{'':10}" for value in last)
                rows.append(f"{stage_name:9}{run.name:20}{lines[-1]['step']:5}{cells}")
    return "\n".join(rows)


def format_human(run: Run) -> str:
    """Formats the accuracy of the reward model and its baselines on rankings by people."""
    rows = []
    for raters, found in (lookup(run.results, "human", "accuracy") or {}).items():
        for name, estimate in found.items():
            interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
            rows.append(f"{raters:9}{name:14}{estimate['mean']:7.3f}  {interval}  n {estimate['n']}")
    return "\n".join(rows) or f"{run.name} has no measures on human data."
