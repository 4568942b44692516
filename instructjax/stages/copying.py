"""Finished stages that several runs have in common, such as the GPT and SFT of a sweep of PPO."""

import os
import pathlib
import shutil

from etils import epath

from instructjax.errors import CheckpointError
from instructjax.runs import checkpoint, processes
from instructjax.stages import beginning
from instructjax.stages.run import Run
from instructjax.stages.stage import StageFunction


def copy_stage(run: Run, other: Run, stage: StageFunction) -> None:
    """Copies a finished stage of a run into another run, and compares its recipe and records with the other's.

    Checkpoints never change in place, so they become hard links, which need no space.

    Raises:
      CheckpointError: the other run has another checkpoint of this stage.
      ConfigError, DataError: the stage was trained with another recipe or other records.
    """
    name = stage.declaration.name
    source, target = run.directory(name), other.directory(name)
    # Only the first process looks: another may come when the copy is there already, and would not wait for it.
    processes.first(lambda: None if other.is_finished(name) else _copy(source, target))
    found, expected = (checkpoint.fingerprint(place.checkpoints(name)) for place in (other, run))
    if found != expected:
        raise CheckpointError(f"{target}: expected the checkpoint of {source}, found another; choose another folder")
    _ = other.layout
    beginning.check(other, stage.declaration)


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the folder of a stage without the choice among its checkpoints, which belongs to a reward model."""
    partial = target.parent / f".{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link_checkpoint, ignore=shutil.ignore_patterns("selected.json"))
    os.replace(partial, target)


def _link_checkpoint(source: str, target: str) -> None:
    (os.link if "checkpoints" in pathlib.Path(source).parts else shutil.copy2)(source, target)
