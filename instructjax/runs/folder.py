"""The folder of a run: what stands where, and how far each stage is.

WORKDIR/data/                 prepared records and the tokenizer
WORKDIR/STAGE/checkpoints/    weights, tokenizer and config of a stage
WORKDIR/STAGE/metrics.jsonl   its curves
WORKDIR/STAGE/config.json     the config that it ran with
WORKDIR/STAGE/began.json      what the stage is, fingerprints of the records it learns from, the code's version
WORKDIR/STAGE/summary.json    written when it made its last step
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
    """Returns whether a stage of this run made its last step."""
    return (stage_directory(workdir, stage) / "summary.json").exists()


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
    """Returns the checkpoint that was chosen among those of a stage; None if the last one counts."""
    chosen = stage_directory(workdir, stage) / "selected.json"
    return files.read_json(chosen)["step"] if chosen.exists() else None


def began(workdir: epath.PathLike, stage: str) -> dict[str, Any]:
    """Returns what the stage was begun with: began.json, {} if it has none yet."""
    path = stage_directory(workdir, stage) / "began.json"
    return files.read_json(path) if path.exists() else {}
