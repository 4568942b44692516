"""The folder of a run: the places of its files, and the progress of each stage.

WORKDIR/data/                 records that the run wrote and the tokenizer; prepared records, unless they are elsewhere
WORKDIR/STAGE/checkpoints/    weights, tokenizer and config of a stage
WORKDIR/STAGE/metrics.jsonl   its curves
WORKDIR/STAGE/config.json     its config
WORKDIR/STAGE/began.json      the stage's declaration, fingerprints of its records, and the version of the code
WORKDIR/STAGE/summary.json    written after its last step
WORKDIR/tasks/STAGE/           outputs and results of a stage's policy on public tasks
WORKDIR/results.json, report.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError, DataError
from instructjax.runs import checkpoint, checkpoint_files

PAPER = ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx")  # the paper's stages, in order


def stage_directory(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns WORKDIR/STAGE."""
    return epath.Path(workdir) / stage


def is_finished(workdir: epath.PathLike, stage: str) -> bool:
    """Returns whether a stage of this run has made its last step."""
    return files.exists(stage_directory(workdir, stage) / "summary.json")


def summary(workdir: epath.PathLike, stage: str) -> dict[str, Any] | None:
    """Reads a stage's summary.json; None if it is not finished."""
    path = stage_directory(workdir, stage) / "summary.json"
    return files.read_json(path) if files.exists(path) else None


def saved_checkpoints(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns the checkpoint folder of a stage of this run, which may be in progress.

    Raises:
      CheckpointError: the stage has saved nothing yet.
    """
    directory = stage_directory(workdir, stage)
    if not _has_checkpoint(directory):
        others = ", ".join(other for other in PAPER if _has_checkpoint(stage_directory(workdir, other)))
        found = f"those of {others}" if others else "none"
        raise CheckpointError(f"{directory}: expected a checkpoint of the stage {stage}, found {found}")
    return directory / "checkpoints"


def _has_checkpoint(directory: epath.Path) -> bool:
    return bool(checkpoint_files.saved_steps(directory / "checkpoints"))


def finished_checkpoints(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns the checkpoint folder of a stage of this run.

    Raises:
      CheckpointError: the stage is not finished.
    """
    directory = stage_directory(workdir, stage)
    if not is_finished(workdir, stage):
        found = "an unfinished one" if files.exists(directory / "checkpoints") else "none"
        raise CheckpointError(f"{directory}: expected the finished stage {stage}, found {found}")
    return directory / "checkpoints"


def selected_step(workdir: epath.PathLike, stage: str) -> int | None:
    """Returns the step of the checkpoint that was chosen for a stage; None if the last one is used."""
    chosen = stage_directory(workdir, stage) / "selected.json"
    return files.read_json(chosen)["step"] if files.exists(chosen) else None


def tasks_directory(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns WORKDIR/tasks/STAGE."""
    return epath.Path(workdir) / "tasks" / stage


def read_tasks(workdir: epath.PathLike, stages: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads what `experiments/benchmark_tasks.py` has measured on the policies of stages, by stage."""
    paths = {stage: tasks_directory(workdir, stage) / "results.json" for stage in stages}
    return {stage: json.loads(path.read_text()) for stage, path in paths.items() if files.exists(path)}


def forget_results(workdir: epath.PathLike, stage: str) -> None:
    """Removes the results of a run, and says so, if they describe a stage that is about to be trained.

    Otherwise `watch.py`, `evaluate.py` and `report.md` would show results of earlier weights.
    """
    workdir = epath.Path(workdir)
    tasks = tasks_directory(workdir, stage)
    if files.exists(tasks):
        tasks.rmtree()
        print(f"{tasks} described earlier weights of {stage} and is removed; measure the public tasks again")
    results = workdir / "results.json"
    if not files.exists(results) or stage not in files.read_json(results).get("checkpoints", {stage: ""}):
        return
    for path in (results, workdir / "report.md", workdir / "evaluate" / "answers.jsonl"):
        path.unlink(missing_ok=True)
    print(f"{results} and report.md described earlier weights of {stage} and are removed; evaluate again")


def outdated(workdir: epath.PathLike, results: Mapping[str, Any]) -> list[str]:
    """Returns the stages whose checkpoints are not those that the results describe.

    Stages without a folder of checkpoints, as in a copy of a run's small files, do not count as outdated.

    Args:
      workdir: the run's folder.
      results: the content of results.json, or of another file with fingerprints in "checkpoints".
    """
    known = {name: stage_directory(workdir, name) for name in results.get("checkpoints", {})}
    return [
        name
        for name, directory in known.items()
        if not files.exists(directory)
        or files.exists(directory / "checkpoints")
        and _fingerprint(directory) != results["checkpoints"][name]
    ]


def outdated_comparisons(workdir: epath.PathLike) -> str:
    """Returns a warning if the collected rankings rank answers of earlier weights of a policy; "" if not.

    Learning from such rankings is right when steps 2 and 3 are iterated, and otherwise a mistake.
    """
    path = epath.Path(workdir) / "data" / "comparisons.json"
    stages = outdated(workdir, files.read_json(path)) if files.exists(path) else []
    if not stages:
        return ""
    return (
        f"{path.parent}/rankings.jsonl ranks answers of earlier weights of {', '.join(stages)}; "
        "start in a new folder to rank answers of the new ones"
    )


def check_comparisons(workdir: epath.PathLike) -> None:
    """Raises an error if the files of rankings that were added to a run are not as they were added.

    Raises:
      DataError: names the file.
    """
    path = epath.Path(workdir) / "data" / "comparisons.json"
    noted = files.read_json(path).get("files", {}) if files.exists(path) else {}
    for name, expected in noted.items():
        file = path.parent / name
        if files.exists(file) and (found := digest(file.read_bytes())) != expected:
            raise DataError(
                f"{file}: expected the rankings that were added to this run ({expected}), found {found}; restore the "
                "file, or choose another --workdir"
            )


def digest(content: bytes) -> str:
    """Returns 16 characters that identify the content of a file."""
    return hashlib.sha256(content).hexdigest()[:16]


def _fingerprint(directory: epath.Path) -> str:
    try:
        return checkpoint.fingerprint(directory / "checkpoints")
    except CheckpointError:  # none or a damaged one is another one
        return ""


def began(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    """Reads a stage's began.json; {} if there is none yet."""
    path = stage_directory(workdir, stage) / "began.json"
    return files.read_json(path) if files.exists(path) else {}
