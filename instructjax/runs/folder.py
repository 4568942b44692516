"""The folder of a run: the places of its files, and the progress of each stage.

WORKDIR/data/                 records that the run wrote and the tokenizer; prepared records, unless they are elsewhere
WORKDIR/STAGE/checkpoints/    weights, tokenizer and config of a stage
WORKDIR/STAGE/metrics.jsonl   its curves
WORKDIR/STAGE/config.json     its config
WORKDIR/STAGE/began.json      the stage's declaration, fingerprints of its records, and the version of the code
WORKDIR/STAGE/summary.json    written after its last step
WORKDIR/results.json, report.md
"""

from __future__ import annotations

from typing import Any

from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError

PAPER = ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx")  # the paper's stages, in order


def stage_directory(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns WORKDIR/STAGE."""
    return epath.Path(workdir) / stage


def is_finished(workdir: epath.PathLike, stage: str) -> bool:
    """Returns whether a stage of this run has made its last step."""
    return (stage_directory(workdir, stage) / "summary.json").exists()


def summary(workdir: epath.PathLike, stage: str) -> dict[str, Any] | None:
    """Reads a stage's summary.json; None if it is not finished."""
    path = stage_directory(workdir, stage) / "summary.json"
    return files.read_json(path) if path.exists() else None


def finished_checkpoints(workdir: epath.PathLike, stage: str) -> epath.Path:
    """Returns the checkpoint folder of a stage of this run.

    Raises:
      CheckpointError: the stage is not finished.
    """
    directory = stage_directory(workdir, stage)
    if not is_finished(workdir, stage):
        found = "an unfinished one" if (directory / "checkpoints").exists() else "none"
        raise CheckpointError(f"{directory}: expected the finished stage {stage}, found {found}")
    return directory / "checkpoints"


def selected_step(workdir: epath.PathLike, stage: str) -> int | None:
    """Returns the step of the checkpoint that was chosen for a stage; None if the last one is used."""
    chosen = stage_directory(workdir, stage) / "selected.json"
    return files.read_json(chosen)["step"] if chosen.exists() else None


def began(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    """Reads a stage's began.json; {} if there is none yet."""
    path = stage_directory(workdir, stage) / "began.json"
    return files.read_json(path) if path.exists() else {}
