"""Shows the progress of runs in the terminal, read from their folders."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from instructjax import files, warning_log
from instructjax.errors import DataError
from instructjax.reporting import answers_section, curves, rankings_section, report
from instructjax.reporting.figures import lookup, styles
from instructjax.runs import folder, metrics_file, samples_file

LABELS = {  # of metrics, the most informative first
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
MAX_METRICS = 3  # per stage
QUIET_SECONDS = 120  # without a new line of metrics, until an unfinished stage is called quiet


@dataclasses.dataclass(frozen=True)
class Stage:
    """The progress of a stage of a run.

    Attributes:
      name: the stage.
      lines: the lines of its metrics.jsonl.
      steps: the total number of steps; None if it is not known yet.
      finished: whether the stage has made its last step.
      age: seconds since its last line of metrics.
    """

    name: str
    lines: Sequence[Mapping[str, Any]]
    steps: int | None
    finished: bool
    age: float


def read_stages(workdir: epath.PathLike) -> list[Stage]:
    """Reads the stages that have begun, in the paper's order, followed by guests in alphabetical order.

    Raises:
      DataError: the folder does not exist, or has no run in it.
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
    """Returns the steps that a recipe sets, or None if they follow from epochs."""
    declared = folder.began(directory.parent, directory.name).get("stage", {})
    section = files.read_json(directory / "config.json").get(declared.get("section", directory.name), {})
    return section.get("steps", section.get("iterations"))


def is_finished(workdir: epath.PathLike) -> bool:
    """Returns whether a run has results that describe its checkpoints."""
    return files.exists(epath.Path(workdir) / "results.json") and not folder.outdated(workdir, _results(workdir))


def render(workdirs: Sequence[epath.PathLike]) -> RenderableType:
    """Renders a table of stages, with one line per run, and the results of finished runs."""
    runs = {_short(workdir, workdirs): read_stages(workdir) for workdir in workdirs}
    names = list(dict.fromkeys(stage.name for found in runs.values() for stage in found))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", *(["run"] if len(runs) > 1 else []), "", "time", "", "now"):
        table.add_column(column, no_wrap=column != "now")
    for name in names:
        rows = [(run, stage) for run, found in runs.items() for stage in found if stage.name == name]
        for row, (run, stage) in enumerate(rows):
            table.add_row("" if row else name, *([run] if len(runs) > 1 else []), *_cells(stage))
    finished = {_short(workdir, workdirs): _results(workdir) for workdir in workdirs if is_finished(workdir)}
    if len(workdirs) == 1:
        notes = _notes(workdirs[0], runs[_short(workdirs[0], workdirs)])
        return Group(
            table,
            *_rankings(workdirs[0]),
            *notes,
            *(Text("\n" + report.terminal_table(results)) for results in finished.values()),
        )
    return Group(table, Text(), *([_compare(finished)] if finished else []))


def _notes(workdir: epath.PathLike, stages: Sequence[Stage]) -> list[Text]:
    """Returns the lines below the metrics: answers of a stage in progress, outdated results, warnings."""
    notes = []
    running = [stage for stage in stages if not stage.finished]
    samples = samples_file.read(folder.stage_directory(workdir, running[-1].name)) if running else []
    if samples:
        notes.append(f"{running[-1].name}, {answers_section.format_step(samples, samples[-1]['step'])}")
    if files.exists(epath.Path(workdir) / "results.json"):
        if stages_outdated := folder.outdated(workdir, _results(workdir)):
            notes.append(f"results.json describes earlier weights of {', '.join(stages_outdated)}; evaluate again")
    if warning := folder.outdated_comparisons(workdir):
        notes.append(warning)
    if lines := warning_log.read(workdir):
        notes.append(f"{len(lines)} warnings in {warning_log.NAME}; the newest: {lines[-1]}")
    return [Text("\n" + note) for note in notes]


def _rankings(workdir: epath.PathLike) -> list[Text]:
    """Returns a line with the reward model's accuracy on the test rankings, once its stage has measured it."""
    path = folder.stage_directory(workdir, "reward") / "rankings.json"
    return [Text("\n" + rankings_section.format_line(files.read_json(path)))] if path.exists() else []


def _cells(stage: Stage) -> tuple[str, str, str, str]:
    known = [name for name in LABELS if any(line.get(name) is not None for line in stage.lines)]
    now = [f"{LABELS[name]} {curves.curve(stage.lines, name)[1][-1]:.3g}" for name in known[:MAX_METRICS]]
    step = stage.lines[-1]["step"] if stage.lines else 0
    if stage.finished:
        state = f"[green]{stage.steps} steps[/green]"
    else:
        count = f"{step} of {stage.steps}" if stage.steps else f"step {step}"
        quiet = f"[red]{count}, quiet for {_clock(stage.age)}[/red]"
        state = f"[yellow]{count}[/yellow]" if stage.age < QUIET_SECONDS else quiet
    seconds = max((line.get("wall_seconds", 0.0) for line in stage.lines), default=0.0)
    line = curves.sparkline(list(curves.curve(stage.lines, known[0])[1])) if known else ""
    return state, _clock(seconds), line, ", ".join(now)


def _compare(runs: Mapping[str, Any]) -> Table:
    """Renders a column per run: win rates against SFT by held-out labelers or, if there are none, rewards."""
    models = styles(name for results in runs.values() for name in results["models"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", *runs):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, (name, _) in models.items():
        cells = [_win_rate_or_reward(lookup(results, "models", model)) for results in runs.values()]
        if any(cells):
            table.add_row(name.replace("\n", " "), *cells)
    table.caption = "win rate against SFT by held-out labelers or, if there is none, reward; 95 % intervals"
    return table


def _win_rate_or_reward(found: Mapping[str, Any] | None) -> str:
    estimate = lookup(found, "win_rate_vs_sft", "heldout") or lookup(found, "reward")
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}" if estimate else ""


def _results(workdir: epath.PathLike) -> dict[str, Any]:
    return files.read_json(epath.Path(workdir) / "results.json")


def _short(workdir: epath.PathLike, workdirs: Sequence[epath.PathLike]) -> str:
    """Returns the last part of a folder's path, or the whole path if several runs share the last part."""
    names = [epath.Path(other).name for other in workdirs]
    name = epath.Path(workdir).name
    return name if names.count(name) == 1 else str(workdir)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
