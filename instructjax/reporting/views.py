"""Reads finished runs and shows them as figures and text, for the notebooks.

Only metrics.jsonl of each stage, results.json and evaluate/answers.jsonl are read. `save` copies
them, so a run can be shown without its checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from instructjax import files
from instructjax.errors import DataError
from instructjax.reporting import figures
from instructjax.reporting.curves import COLORS, curve
from instructjax.reporting.figures import MODELS
from instructjax.runs import metrics_file


@dataclasses.dataclass(frozen=True)
class Run:
    """The measurements of a finished run.

    Attributes:
      name: the name of its folder.
      results: the content of results.json.
      metrics: for each stage, the lines of its metrics.jsonl.
      answers: for each test prompt, {"prompt": PROMPT, MODEL: ANSWER, ...}.
    """

    name: str
    results: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    answers: Sequence[Mapping[str, str]]

    @property
    def is_human(self) -> bool:
        """Whether the run is on human data, without simulated labelers."""
        return bool(self.results.get("human"))


def load(folder: epath.PathLike) -> Run:
    """Reads one run.

    Raises:
      DataError: the folder has no results.json.
    """
    folder = epath.Path(folder)
    if not (folder / "results.json").is_file():
        raise DataError(f"{folder}: expected a finished run, found no results.json")
    answers = (folder / "evaluate" / "answers.jsonl").read_text().splitlines()
    return Run(
        name=folder.name,
        results=files.read_json(folder / "results.json"),
        metrics={path.parent.name: metrics_file.read(path) for path in sorted(folder.glob("*/metrics.jsonl"))},
        answers=[json.loads(line) for line in answers],
    )


def load_all(folder: epath.PathLike, *, human: bool = False) -> list[Run]:
    """Reads the finished runs in a folder of runs, sorted by name.

    Args:
      folder: the folder that contains the runs' folders.
      human: whether to read the runs on human data, or all others.

    Raises:
      DataError: there is no such run.
    """
    folder = epath.Path(folder)
    runs = [load(path.parent) for path in sorted(folder.glob("*/results.json"))]
    kept = [run for run in runs if run.is_human == human]
    if not kept:
        kind = "on human data" if human else "without human data"
        raise DataError(f"{folder}: expected a finished run {kind}, found {len(runs)} others")
    return kept


def save(run: epath.PathLike, folder: epath.PathLike, prompts: int = 40) -> None:
    """Copies the files that `load` reads, a few kilobytes, with the answers to the first `prompts` prompts only."""
    run, folder = epath.Path(run), epath.Path(folder)
    found = load(run)
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "evaluate").mkdir(parents=True)
    (folder / "results.json").write_text((run / "results.json").read_text())
    for stage in found.metrics:
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text((run / stage / "metrics.jsonl").read_text())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.answers[:prompts]]
    (folder / "evaluate" / "answers.jsonl").write_text("".join(lines))


def format_answers(run: Run, count: int = 5, seed: int = 0, models: Sequence[str] = tuple(MODELS)) -> str:
    """Formats the answers of each model to some prompts, drawn at random."""
    drawn = random.Random(seed).sample(range(len(run.answers)), min(count, len(run.answers)))
    parts = []
    for row in (run.answers[i] for i in sorted(drawn)):
        lines = [f"  {MODELS[model][0].replace(chr(10), ' '):15}{row[model]!r}" for model in models if model in row]
        parts.append("\n".join([row["prompt"], *lines]))
    return "\n\n".join(parts)


def format_stages(run: Run) -> str:
    """Formats the steps and seconds of each stage."""
    rows = [f"{'stage':10}{'steps':>7}{'seconds':>9}"]
    for stage in ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx"):
        if lines := run.metrics.get(stage):
            rows.append(f"{stage:10}{lines[-1]['step']:7}{run.results['wall_seconds'].get(stage, 0):9.0f}")
    rows.append(f"{'total':17}{run.results['wall_seconds']['total']:9.0f}")
    return "\n".join(rows)


def overoptimization(runs: Sequence[Run]) -> Figure:
    """Draws reward and, if known, true quality against the policy's distance from the initial policy.

    The distance is the square root of the KL divergence, as in figure 1 of Gao et al. 2022. All
    measures are on held-out prompts.
    """
    panels = {"validation_reward": "reward (RM)", "true_quality": "true quality"}
    shown = {
        name: title
        for name, title in panels.items()
        if any(len(curve(run.metrics.get("ppo_ptx", ()), name)[0]) for run in runs)
    }
    figure, panes = _figure(max(1, len(shown)))
    for axes, (name, title) in zip(panes, shown.items(), strict=False):
        for stage in ("ppo", "ppo_ptx"):
            label, color = MODELS[stage]
            for i, run in enumerate(runs):
                lines = run.metrics.get(stage, ())
                kl = dict(zip(*curve(lines, "validation_kl"), strict=True))
                steps, values = curve(lines, name)
                x = [np.sqrt(max(kl[step], 0.0)) for step in steps]
                axes.plot(x, values, ".-", color=color, linewidth=1.2, alpha=0.8, label=None if i else label)
        axes.set_xlabel(r"$\sqrt{\mathrm{KL}}$ to the initial policy")
        axes.set_title(title)
        axes.legend(frameon=False)
    return figure


def calibration(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draws the reward model's accuracy against its confidence. A calibrated model is on the diagonal.

    Args:
      found: for each group of raters, the bins of `agreement.calibration`.
    """
    figure, (axes,) = _figure(1)
    for (raters, bins), color in zip(found.items(), COLORS, strict=False):
        x, y = [part["predicted"] for part in bins], [part["right"] for part in bins]
        axes.plot(x, y, "o-", color=color, linewidth=1.2, label=f"{raters} raters")
    axes.plot([0.5, 1], [0.5, 1], ":", color="black", linewidth=0.8)
    axes.set_xlabel("predicted accuracy: mean of σ(difference of rewards)")
    axes.set_ylabel("share of pairs ordered as by raters")
    axes.legend(frameon=False)
    return figure


def answer_gradients(rewards: Sequence[float], gradients: Sequence[float], scores: Sequence[float]) -> Figure:
    """Draws the reward of each answer, with an arrow in the direction of a gradient step.

    Args:
      rewards: [K].
      gradients: [K], the gradient of the loss with respect to the rewards.
      scores: [K], the labeler's scores, which label the answers.
    """
    figure, (axes,) = _figure(1)
    ends = [reward - 4 * gradient for reward, gradient in zip(rewards, gradients, strict=True)]
    axes.set_ylim(min(*rewards, *ends) - 0.2, max(*rewards, *ends) + 0.2)
    for k, (reward, end, score) in enumerate(zip(rewards, ends, scores, strict=True)):
        axes.plot([k], [reward], "o", color=COLORS[0], markersize=8)
        axes.annotate("", (k, end), (k, reward), arrowprops={"arrowstyle": "->", "color": COLORS[1], "lw": 2})
        axes.annotate(f"score {score:g}", (k, reward), (8, -3), textcoords="offset points", fontsize=9)
    axes.set_xlim(-0.5, len(rewards) - 0.1)
    axes.set_xticks(range(len(rewards)), [f"answer {k}" for k in range(len(rewards))])
    axes.set_ylabel("reward, and the direction of a gradient step")
    return figure


def format_seeds(runs: Sequence[Run], key: str = "heldout") -> str:
    """Formats the win rate against SFT of each model in each run, with 95 % intervals."""
    rows = [f"{'':16}" + "".join(f"{run.name:>20}" for run in runs)]
    for model, (name, _) in MODELS.items():
        cells = [figures.lookup(run.results, "models", model, "win_rate_vs_sft", key) for run in runs]
        if any(cells):
            texts = [f"{c['mean']:.3f} ± {(c['high'] - c['low']) / 2:.3f}" if c else "" for c in cells]
            rows.append(f"{name.replace(chr(10), ' '):16}" + "".join(f"{text:>20}" for text in texts))
    return "\n".join(rows)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5.2 if panels == 1 else 4.2 * panels, 3.4), layout="constrained")
    panes = [figure.add_subplot(1, panels, 1 + i) for i in range(panels)]
    for axes in panes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure, panes
