"""How far runs are, read from their folders: for the terminal, also while they go on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from instructjax import files
from instructjax.errors import DataError
from instructjax.reporting import curves, report
from instructjax.reporting.figures import lookup, styles
from instructjax.runs import folder, metrics_file

SHOWN = {  # metrics by what to call them, the most telling first
    "true_quality": "true quality",
    "validation_reward": "held-out reward",
    "reward": "reward",
    "kl": "KL",
    "validation_accuracy": "held-out accuracy",
    "accuracy": "accuracy",
    "demonstration_loss": "held-out loss",
    "text_loss": "text loss",
    "loss": "loss",
}
MOST = 3  # metrics of a stage
QUIET = 120  # seconds without a line after which a stage that is not finished is said to be quiet


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one run.

    Attributes:
      name: its folder's.
      lines: of its metrics.jsonl.
      steps: how many it is going to make, where that is known.
      finished: whether it made the last of them.
      age: seconds since its newest line.
    """

    name: str
    lines: Sequence[Mapping[str, Any]]
    steps: int | None
    finished: bool
    age: float


def stages(workdir: epath.PathLike) -> list[Stage]:
    """The stages that have begun, in the paper's order, then guests by name.

    Raises:
      DataError: there is no such folder, or no run in it.
    """
    workdir = epath.Path(workdir)
    if not workdir.is_dir():
        raise DataError(f"{workdir}: expected the folder of a run, found none")
    begun = [path.parent for path in sorted(workdir.glob("*/metrics.jsonl"))]
    if not begun and not (workdir / "data").is_dir():
        raise DataError(f"{workdir}: expected the folder of a run, found no stage in it")
    rank = {name: i for i, name in enumerate(folder.PAPER)}
    return [_stage(path) for path in sorted(begun, key=lambda path: rank.get(path.name, len(rank)))]


def _stage(directory: epath.Path) -> Stage:
    summary = directory / "summary.json"
    finished = summary.exists()
    path = directory / "metrics.jsonl"
    steps = files.read_json(summary)["steps"] if finished else _planned(directory)
    return Stage(directory.name, metrics_file.read(path), steps, finished, time.time() - path.stat().mtime)


def _planned(directory: epath.Path) -> int | None:
    """Returns the steps that a recipe states; those that follow from epochs are known at the end only."""
    declared = folder.began(directory.parent, directory.name).get("stage", {})
    section = files.read_json(directory / "config.json").get(declared.get("section", directory.name), {})
    return section.get("steps", section.get("iterations"))


def is_over(workdir: epath.PathLike) -> bool:
    """Whether a run has its results."""
    return (epath.Path(workdir) / "results.json").exists()


def view(workdirs: Sequence[epath.PathLike]) -> RenderableType:
    """A table of the stages of the runs, one run below the other, and the results of those that are over."""
    runs = {_short(workdir, workdirs): stages(workdir) for workdir in workdirs}
    names = list(dict.fromkeys(stage.name for found in runs.values() for stage in found))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", *(["run"] if len(runs) > 1 else []), "", "time", "", "now"):
        table.add_column(column, no_wrap=column != "now")
    for name in names:
        for i, (run, found) in enumerate(runs.items()):
            for stage in found:
                if stage.name == name:
                    first = name if i == 0 or len(runs) == 1 else ""
                    table.add_row(first, *([run] if len(runs) > 1 else []), *_cells(stage))
    over = {_short(workdir, workdirs): _results(workdir) for workdir in workdirs if is_over(workdir)}
    if len(workdirs) == 1:
        return Group(table, *(Text("\n" + report.terminal_table(results)) for results in over.values()))
    return Group(table, Text(), *([_comparison(over)] if over else []))


def _cells(stage: Stage) -> tuple[str, str, str, str]:
    known = [name for name in SHOWN if any(line.get(name) is not None for line in stage.lines)]
    now = [f"{SHOWN[name]} {curves.curve(stage.lines, name)[1][-1]:.3g}" for name in known[:MOST]]
    step = stage.lines[-1]["step"] if stage.lines else 0
    if stage.finished:
        state = f"[green]{stage.steps} steps[/green]"
    else:
        count = f"{step} of {stage.steps}" if stage.steps else f"step {step}"
        quiet = f"[red]{count}, quiet for {_clock(stage.age)}[/red]"
        state = f"[yellow]{count}[/yellow]" if stage.age < QUIET else quiet
    seconds = max((line.get("wall_seconds", 0.0) for line in stage.lines), default=0.0)
    line = curves.sparkline(list(curves.curve(stage.lines, known[0])[1])) if known else ""
    return state, _clock(seconds), line, ", ".join(now)


def _comparison(over: Mapping[str, Any]) -> Table:
    """Win rates against SFT by held-out labelers where they are known, and rewards: a column for each run."""
    models = styles(name for results in over.values() for name in results["models"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", *over):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, (name, _) in models.items():
        cells = [_judged(lookup(results, "models", model)) for results in over.values()]
        if any(cells):
            table.add_row(name.replace("\n", " "), *cells)
    table.caption = "win rate against SFT by held-out labelers, or else the reward; 95 % intervals"
    return table


def _judged(found: Mapping[str, Any] | None) -> str:
    estimate = lookup(found, "win_rate_vs_sft", "heldout") or lookup(found, "reward")
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}" if estimate else ""


def _results(workdir: epath.PathLike) -> dict[str, Any]:
    return files.read_json(epath.Path(workdir) / "results.json")


def _short(workdir: epath.PathLike, workdirs: Sequence[epath.PathLike]) -> str:
    """The last part of a folder's path, or all of it where that is not enough to tell the runs apart."""
    names = [epath.Path(other).name for other in workdirs]
    name = epath.Path(workdir).name
    return name if names.count(name) == 1 else str(workdir)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
