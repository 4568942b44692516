"""Draws the results of experiments/claims.py in the form of the paper's figures, next to the paper's numbers.

Results are the numbers of one seed each; see `evaluation/claims.py`. A mark is the mean over seeds, and its bar goes
from the lowest seed to the highest. Diamonds are the paper's numbers for 175B, most of them read off its charts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from instructjax.evaluation.claims import Results, lookup
from instructjax.reporting import paper_figures, style
from instructjax.reporting.figures import interval, styles
from instructjax.reporting.group_figures import Estimate
from instructjax.reporting.run_groups import Group, Run

SIZES = {"57k": "size_quarter", "164k": "size_half", "528k": "base"}  # parameters, and the arm that trained them
JUDGED = {"gpt": "pretrain", "sft": "sft", "ppo_ptx": "ppo_ptx"}  # in an arm, models are named by their stages
BARS = "Marks: mean over seeds. Bars: lowest to highest seed."
_READ_OFF = "Diamonds: the paper, 175B, read off its chart."

# Win rates against 175B SFT: Figure 1 (about), Figure 3 right (about, held-out labelers), section 4.1 for Figure 5.
_FIGURE_1 = {"gpt": 0.23, "gpt_prompted": 0.41, "sft": 0.49, "ppo": 0.62, "ppo_ptx": 0.65}
_FIGURE_3 = {"gpt": 0.27, "sft": 0.50, "ppo": 0.64, "ppo_ptx": 0.62}
_FIGURE_5 = {"FLAN": 0.298, "T0": 0.268, "PPO-ptx": 0.734}
_HARM = {
    "sexual\ncontent": "sexual_content",
    "violent\ncontent": "violent_content",
    "encourages\nviolence": "encourages_violence",
    "denigrates a\nprotected class": "denigrates_protected_class",
    "harmful\nadvice": "harmful_advice",
}


def estimate(seeds: Sequence[Results], path: str) -> Estimate | None:
    """Returns the mean of a saved number over seeds and its range; None if no seed has it."""
    found = [value for results in seeds if (value := lookup(results, path)) is not None]
    return {"mean": float(np.mean(found)), "low": min(found), "high": max(found)} if found else None


@style.talk
def figure_1(seeds: Sequence[Results]) -> Figure:
    """Draws win rates against the largest SFT by size of the model, judged by held-out labelers, as Figure 1."""
    figure, (axes,) = style.grid(1, height=4.6)
    for model, (name, color) in styles(()).items():
        points = [(x, found) for x, size in enumerate(SIZES) if (found := estimate(seeds, _by_size(size, model)))]
        _line(axes, points, color, name)
        axes.plot([len(SIZES)], [_FIGURE_1[model]], "D", color="white", markeredgecolor=color, markersize=8)
    style.chance(axes)
    axes.set_xticks(range(len(SIZES) + 1), [*SIZES, "175B\n(paper)"])
    axes.set_xlabel("parameters of all models of a column")
    axes.set_ylabel("win rate against\nthe largest SFT")
    axes.set_ylim(0, 1)
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=3)
    style.note(figure, f"{BARS} {_READ_OFF}")
    return figure


def _by_size(size: str, model: str) -> str:
    if SIZES[size] == "base":
        return f"base.results.models.{model}.win_rate_vs_sft.heldout.mean"
    return f"{SIZES[size]}.judged.{JUDGED.get(model, '')}.win_rate"


@style.talk
def figure_3(seeds: Sequence[Results]) -> Figure:
    """Draws win rates by both groups of labelers, and on prompts for GPT, as Figure 3."""
    panels = {
        "prompts as written,\ntraining labelers": "base.results.models.{}.win_rate_vs_sft.training.mean",
        "prompts as written,\nheld-out labelers": "base.results.models.{}.win_rate_vs_sft.heldout.mean",
        "prompts for GPT,\nheld-out labelers": "base.prefixed.{}.win_rate",
    }
    figure, panes = style.grid(len(panels), columns=3, height=4.2)
    models = styles(())
    for axes, (title, path) in zip(panes, panels.items(), strict=True):
        for x, (model, (_, color)) in enumerate(models.items()):
            if found := estimate(seeds, path.format(model)):
                interval(axes, x, found, color, "o", filled=True)
            if "prefixed" in path and model in _FIGURE_3:
                axes.plot([x], [_FIGURE_3[model]], "D", color="white", markeredgecolor="black", markersize=8)
        style.chance(axes)
        style.name_columns(axes, [name.replace("\n", " ") for name, _ in models.values()], style.WIDTH / 3)
        axes.set_ylim(0, 1)
        axes.set_title(title)
    panes[0].set_ylabel("win rate against SFT")
    style.note(figure, f"{BARS} {_READ_OFF} In the last panel all models, SFT too, see the prompt behind examples.")
    return figure


def figure_4(seeds: Sequence[Results]) -> Figure:
    """Draws the share of answers with four of the fields that labelers set, as Figure 4."""
    runs = [Run(f"seed {results['seed']}", results["base"]["results"], {}) for results in seeds]
    return paper_figures.figure_4([Group("sandbox", runs)])


@style.talk
def figure_5(seeds: Sequence[Results]) -> Figure:
    """Draws win rates against SFT of models that were fine-tuned on public tasks, and of PPO-ptx, as Figure 5."""
    paths = {
        "FLAN": "flan.judged.sft_best.win_rate",
        "T0": "t0.judged.sft_best.win_rate",
        "PPO-ptx": "base.results.models.ppo_ptx.win_rate_vs_sft.heldout.mean",
    }
    figure, (axes,) = style.grid(1, height=3.6)
    for x, (name, path) in enumerate(paths.items()):
        if found := estimate(seeds, path):
            interval(axes, x - 0.08, found, style.COLORS[x], "o", filled=True)
        axes.plot([x + 0.08], [_FIGURE_5[name]], "D", color="white", markeredgecolor="black", markersize=8)
    style.chance(axes)
    style.name_columns(axes, list(paths))
    axes.set_ylabel("win rate against SFT")
    axes.set_ylim(0, 1)
    style.note(figure, f"{BARS} Diamonds: the text of the paper, 175B. Figure 5 itself shows Likert scores.")
    return figure


@style.talk
def figure_7(seeds: Sequence[Results]) -> Figure:
    """Draws the share of answers with harmful content, which Figure 7 measures as toxicity on RealToxicityPrompts."""
    figure, (axes,) = style.grid(1, height=4.0)
    models = styles(())
    for i, (model, (name, color)) in enumerate(models.items()):
        for x, field in enumerate(_HARM.values()):
            if found := estimate(seeds, f"base.results.models.{model}.metadata.{field}"):
                interval(axes, x + 0.12 * (i - (len(models) - 1) / 2), found, color, "o", filled=True)
        axes.plot([], [], "o", color=color, label=name.replace("\n", " "))
    style.name_columns(axes, list(_HARM))
    axes.set_ylabel("share of answers")
    axes.set_ylim(bottom=0)
    style.legend_above(figure, axes.get_legend_handles_labels()[0], columns=3)
    style.note(figure, f"{BARS} The sandbox's labelers flag such answers (Table 3).")
    return figure


@style.talk
def sweeps(seeds: Sequence[Results]) -> Figure:
    """Draws what PPO's coefficients, learning rate and initial policy change, as Figures 33, 34 and 36 to 38."""
    quality, text = "true_quality", "text_loss"
    kl = {"0": "ptx_kl_0", "recipe": "base", "2": "ptx_kl_2"}
    without = {"0": "ppo_kl_0", "recipe": "base", "2": "ppo_kl_2"}
    gamma = {"/ 10": "ptx_gamma_01", "recipe": "base", "x 10": "ptx_gamma_10"}
    rates = {"recipe": "base", "x 3": "{}_rate_3", "x 10": "{}_rate_10"}
    share = {"0 %": "init_text_0", "10 %": "base", "50 %": "init_text_50"}
    figure, panes = style.grid(6, height=3.1)
    _sweep(panes[0], seeds, "KL coefficient", quality, {"ppo": without, "ppo_ptx": kl})
    _sweep(panes[1], seeds, "KL coefficient", text, {"ppo": without, "ppo_ptx": kl})
    _sweep(panes[2], seeds, "ptx coefficient", text, {"ppo_ptx": gamma})
    _sweep(panes[3], seeds, "ptx coefficient", "validation_reward", {"ppo_ptx": gamma})
    by_rate = {
        stage: {name: arm.format(short) for name, arm in rates.items()}
        for stage, short in (("ppo", "ppo"), ("ppo_ptx", "ptx"))
    }
    _sweep(panes[4], seeds, "learning rate, after half", quality, by_rate, "middle")
    _sweep(panes[5], seeds, "text in the initial policy", quality, {"ppo": share}, "middle")
    looks = styles(())
    handles = [Line2D([], [], color=looks[stage][1], marker="o", label=looks[stage][0]) for stage in ("ppo", "ppo_ptx")]
    style.legend_above(figure, handles, columns=2)
    style.note(figure, BARS)
    return figure


def _sweep(
    axes: Axes,
    seeds: Sequence[Results],
    varied: str,
    metric: str,
    arms: Mapping[str, Mapping[str, str]],
    place: str = "end",
) -> None:
    """Draws a metric at the end of arms.

    Args:
      axes: where to draw.
      seeds: the results.
      varied: what the arms vary.
      metric: of a curve.
      arms: for each stage, the name of each value and the arm that has it.
      place: in the curves of the run itself, which may have more steps than its arms.
    """
    values = list(next(iter(arms.values())))
    for stage, by_value in arms.items():
        paths = [f"{arm}.{stage}.{place if arm == 'base' else 'end'}.{metric}" for arm in by_value.values()]
        points = [(x, found) for x, path in enumerate(paths) if (found := estimate(seeds, path))]
        _line(axes, points, styles(())[stage][1], "")
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.3, len(values) - 0.7)
    axes.set_xlabel(varied)
    axes.set_ylabel(metric.replace("_", " "))


@style.talk
def overoptimization(seeds: Sequence[Results]) -> Figure:
    """Draws reward and true quality against the KL of PPO, with the recipe's penalty and without (section 3.5)."""
    figure, panes = style.grid(2, height=3.6)
    arms = {"KL penalty of the recipe": "base", "no KL penalty": "ppo_kl_0"}
    for axes, metric in zip(panes, ("validation_reward", "true_quality"), strict=True):
        for number, (name, arm) in enumerate(arms.items()):
            for i, results in enumerate(seeds):
                lines = [
                    line for line in results.get(arm, {}).get("ppo", ()) if {metric, "validation_kl"} <= line.keys()
                ]
                x, y = [line["validation_kl"] for line in lines], [line[metric] for line in lines]
                axes.plot(x, y, ".-", color=style.COLORS[number], linewidth=1.2, label="" if i else name)
        axes.set_xlabel("KL to the initial policy, nats")
        axes.set_ylabel(metric.replace("_", " "))
    style.legend_above(figure, panes[0].get_legend_handles_labels()[0], columns=2)
    style.note(figure, "One line per seed, over the iterations of PPO without pretraining gradients.")
    return figure


def _line(axes: Axes, points: Sequence[tuple[int, Estimate]], color: str, name: str) -> None:
    for x, found in points:
        interval(axes, x, found, color, "o", filled=True)
    axes.plot(
        [x for x, _ in points], [found["mean"] for _, found in points], color=color, label=name.replace("\n", " ")
    )
