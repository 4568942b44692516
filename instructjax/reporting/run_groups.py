"""Reads the runs in a folder and groups them by recipe: the runs of a group differ only in their seed.

A run need not be finished. What is read: metrics.jsonl, config.json and summary.json of each stage,
results.json and evaluate/answers.jsonl. `save` copies them, so a run can be shown without its
checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import DataError
from instructjax.recipe.declared import SOURCES
from instructjax.runs import metrics_file
from instructjax.runs.folder import PAPER

# Sections that only some stages read. The recipe of a run has them as these stages began with them.
# Those without a stage do not decide weights; the last stage's are taken.
_READERS: Mapping[str, Sequence[str]] = {
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "comparisons": ("reward",),
    "reward": ("reward",),
    "ppo_init": ("ppo_init",),
    "ppo": ("ppo", "ppo_ptx"),
    **{section: () for section in ("evaluate", "log", "ppo_log", "tracking", "guards", "invariants")},
}
_SHOWN_KEYS = 2  # that tell apart two recipes of one name
_LONGEST = 24  # characters of a value


@dataclasses.dataclass(frozen=True)
class Run:
    """The measurements of a run, as far as it got.

    Attributes:
      name: the name of its folder.
      results: the content of results.json; empty if there is none.
      metrics: for each stage that has begun, the lines of its metrics.jsonl.
      answers: for each test prompt, {"prompt": PROMPT, MODEL: ANSWER, ...}.
      configs: for each stage, the content of its config.json, if it has one.
      seconds: for each stage that is known to be finished, how long it took.
    """

    name: str
    results: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    answers: Sequence[Mapping[str, str]] = ()
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """The seed of the recipe, if it is known."""
        return next((found["seed"] for found in (self.results, *self.configs.values()) if "seed" in found), None)

    @property
    def source(self) -> str:
        """The section of the recipe that names the records: "sandbox", "e2e" or "files"; empty if unknown."""
        sections = {section for config in self.configs.values() for section in config}
        return next((source for source in SOURCES if source in sections), "")

    @property
    def is_human(self) -> bool:
        """Whether the run is on the E2E data, which people wrote and judged."""
        return bool(self.results.get("human")) or self.source == "e2e"

    @property
    def is_simulated(self) -> bool:
        """Whether the people of the run are simulated, as in the sandbox."""
        models = self.results.get("models", {}).values()
        return self.source == "sandbox" or any(entry and entry.get("win_rate_vs_sft") for entry in models)

    def is_finished(self, stage: str) -> bool:
        """Returns whether a stage has made its last step."""
        return stage in self.metrics and (stage in self.seconds or bool(self.results))

    def recipe(self) -> dict[str, Any]:
        """Returns the dotted keys of the recipe without the seed; if no stage has a config.json, only its name."""
        found: dict[str, Any] = {}
        for stage, config in self.configs.items():
            for key, value in _flatten(config):
                readers = _READERS.get(key.partition(".")[0])
                if readers is not None and stage not in readers:
                    continue
                if found.setdefault(key, value) != value:
                    found[f"{stage}: {key}"] = value
        for key, value in _flatten(list(self.configs.values())[-1]) if self.configs else ():
            found.setdefault(key, value)
        found.pop("seed", None)
        return found or {"recipe": self.results.get("config", self.name)}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one recipe.

    Attributes:
      label: the recipe's name, with the keys that tell it apart from others of the same name.
      runs: those with results first, then sorted by name.
    """

    label: str
    runs: Sequence[Run]


def load(folder: epath.PathLike) -> Run:
    """Reads one run.

    Raises:
      DataError: the folder does not exist, or no stage has begun in it.
      RecordError: a file of metrics is damaged.
    """
    folder = files.parse(folder, "folder")
    stages = in_order(path.parent.name for path in folder.glob("*/metrics.jsonl"))
    if not stages and not (folder / "results.json").is_file():
        raise DataError(f"{folder}: expected the folder of a run, found no stage and no results.json in it")
    answers = folder / "evaluate" / "answers.jsonl"
    summaries = {stage: _json(folder / stage / "summary.json") for stage in stages}
    results = _json(folder / "results.json")
    seconds = {stage: found["wall_seconds"] for stage, found in summaries.items() if "wall_seconds" in found}
    return Run(
        name=folder.name,
        results=results,
        metrics={stage: metrics_file.read(folder / stage / "metrics.jsonl") for stage in stages},
        answers=[json.loads(line) for line in answers.read_text().split("\n") if line] if answers.is_file() else [],
        configs={stage: config for stage in stages if (config := _json(folder / stage / "config.json"))},
        seconds={**seconds, **{stage: s for stage, s in results.get("wall_seconds", {}).items() if stage in stages}},
    )


def load_groups(folder: epath.PathLike) -> list[Group]:
    """Reads all runs in a folder, or the one run that the folder is, and groups them by recipe.

    Returns:
      Groups, those with the most runs that have results first.

    Raises:
      DataError: the folder contains no run.
      RecordError: a file of metrics is damaged.
    """
    folder = files.parse(folder, "folder")
    if _is_run(folder):
        return group([load(folder)])
    runs = [load(path) for path in sorted(folder.glob("*")) if _is_run(path)]
    if not runs:
        raise DataError(f"{folder}: expected a folder of runs, found no run in it; see docs/results.md")
    return group(runs)


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by recipe, those with the most runs that have results first."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (not run.results, run.name)):
        found.setdefault(json.dumps(run.recipe(), sort_keys=True, default=str), []).append(run)
    members = sorted(found.values(), key=lambda group: (-sum(bool(run.results) for run in group), _name(group)))
    return [Group(label, group) for label, group in zip(_labels(members), members, strict=True)]


def save(run: epath.PathLike, folder: epath.PathLike, prompts: int = 40) -> None:
    """Copies the files that `load` reads, with the answers to the first `prompts` prompts only."""
    run, folder = files.parse(run, "run"), files.parse(folder, "folder")
    found = load(run)
    if folder.exists():
        folder.rmtree()
    (folder / "evaluate").mkdir(parents=True)
    for stage in found.metrics:
        (folder / stage).mkdir()
        files.write_text(folder / stage / "metrics.jsonl", (run / stage / "metrics.jsonl").read_text())
        for name in ("config.json", "summary.json"):
            if content := _json(run / stage / name):
                files.write_text(folder / stage / name, json.dumps(content, separators=(",", ":")) + "\n")
    if found.results:
        files.write_text(folder / "results.json", (run / "results.json").read_text())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.answers[:prompts]]
    files.write_text(folder / "evaluate" / "answers.jsonl", "".join(lines))


def format_groups(groups: Sequence[Group]) -> str:
    """Formats each recipe with its runs, their seeds, and what they lack."""
    rows = []
    for members in groups:
        seeds = [run.seed for run in members.runs]
        rows.append(f"{members.label}: {len(seeds)} {'run' if len(seeds) == 1 else 'runs'}")
        for run in members.runs:
            seed = "seed unknown" if run.seed is None else f"seed {run.seed}"
            twice = ", the same as another run's" if run.seed is not None and seeds.count(run.seed) > 1 else ""
            rows.append(f"  {run.name}, {seed}{twice}: {_state(run)}")
    return "\n".join(rows)


def format_missing(groups: Sequence[Group], has: Callable[[Run], bool], what: str) -> str:
    """Returns a sentence that names the runs which lack something; empty if all have it."""
    lacking = [run.name for members in groups for run in members.runs if not has(run)]
    return f"Without {what}: {', '.join(lacking)}." if lacking else ""


def in_order(stages: Iterator[str]) -> list[str]:
    """Sorts stages in the paper's order, followed by guests in alphabetical order."""
    return sorted(stages, key=lambda stage: (PAPER.index(stage) if stage in PAPER else len(PAPER), stage))


def _state(run: Run) -> str:
    """Returns what a run has, and what it lacks."""
    unfinished = [
        f"{stage} unfinished at step {lines[-1]['step'] if lines else 0}"
        for stage, lines in run.metrics.items()
        if not run.is_finished(stage)
    ]
    missing = [f"no {stage}" for stage in PAPER if stage not in run.metrics]
    lacking = [*unfinished, *missing, *([] if run.results else ["no results.json"])]
    done = [stage for stage in run.metrics if run.is_finished(stage)]
    return "; ".join(filter(None, [", ".join(done), ", ".join(lacking)])) if lacking else "all stages and results"


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Returns a label for each group; equal names get the keys that differ, or else the name of a run."""
    labels: list[str] = []
    first: dict[str, Mapping[str, Any]] = {}
    for runs in groups:
        name, recipe = _name(runs), runs[0].recipe()
        label = name
        if name in first:
            other = first[name]
            keys = [key for key in sorted(recipe | dict(other)) if recipe.get(key) != other.get(key)]
            shown = [f"{key}={_short(recipe.get(key))}" for key in keys[:_SHOWN_KEYS]]
            if len(keys) > _SHOWN_KEYS:
                shown.append(f"{len(keys) - _SHOWN_KEYS} more")
            known = all(run_recipe.keys() != {"recipe"} for run_recipe in (recipe, other))
            label = f"{name} ({', '.join(shown) if known else runs[0].name})"
        first.setdefault(name, recipe)
        labels.append(label if label not in labels else f"{label} ({runs[0].name})")
    return labels


def _short(value: Any) -> str:
    """Returns the end of a long value, such as a path."""
    text = str(value)
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST:]


def _name(runs: Sequence[Run]) -> str:
    """Returns the recipe's name: "sandbox:smoke" for configs/sandbox.py:smoke; else where its records come from."""
    named = next((run.results["config"] for run in runs if run.results.get("config")), "")
    path, _, variant = named.partition(":")
    stem = path.rpartition("/")[2].removesuffix(".py")
    return f"{stem}:{variant}" if variant else stem or runs[0].source or runs[0].name


def _flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _is_run(path: epath.Path) -> bool:
    return (path / "results.json").is_file() or any(path.glob("*/metrics.jsonl"))


def _json(path: epath.Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}
