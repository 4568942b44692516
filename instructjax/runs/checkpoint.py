"""Checkpoints: how a run survives an interruption, and how a stage passes its weights to the next.

A directory of checkpoints holds one folder per step. A folder is written under another
name and then renamed, so a folder with a step's name is complete. In a bucket, which cannot
rename, the file commit_success.txt is written last, and a folder without it does not count:

    DIRECTORY/STEP/state  the arrays of the training state
    DIRECTORY/STEP/data   the position of the run in its data
    DIRECTORY/STEP/meta   what the next stage has to know, as JSON, and a digest of each array

A run writes with `Checkpoints` and resumes with its `restore`. The next stage reads
only the weights, with `read_meta` and `restore_params`. Everything that is read is compared with
its digest, so a checkpoint that was damaged after it was saved is not used.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import orbax.checkpoint as ocp
from etils import epath

from instructjax import files, warning_log
from instructjax.errors import CheckpointError, ConfigError, DamagedCheckpointError, TokenizerError
from instructjax.runs import digest, processes
from instructjax.runs.checkpoint_files import (
    absolute,
    pack_position,
    read_arrays,
    read_content,
    read_position,
    remove_empty,
    step_path,
    unpack_position,
)
from instructjax.text.tokenizer import Tokenizer

Tree = TypeVar("Tree")


class Resumable(Protocol):
    """An iterator that can return to an earlier position, such as those of grain."""

    def get_state(self) -> Any:
        """Returns the position in the data: bytes, or something that JSON can write."""

    def set_state(self, state: Any) -> None:
        """Moves to a position that `get_state` returned."""


@dataclasses.dataclass
class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves one step, which may change while a run trains."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint whether it is the one of the step."""
        del context
        return [found.step == self.step for found in checkpoints]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which asks JAX's preemption service nothing: `interruption` alone counts its calls there."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False: whether a run stops does not depend on what it saves."""
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, which writes them and reads them again when it resumes.

    A context manager: leaving it waits for the last save. Only one run at a time may
    write to a directory.

    Attributes:
      directory: the absolute path, local or in a bucket.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None, keep_steps: Collection[int] = ()):
        """Opens a directory, creates it if needed, and removes unfinished checkpoints of a killed run.

        Args:
          directory: where the checkpoints are.
          keep: how many of the newest checkpoints to keep; None keeps all.
          keep_steps: steps whose checkpoints are kept as well, such as the ends of the
            SFT epochs, from which the reward model selects one (section 3.5).

        Raises:
          ConfigError: `keep` is less than 1.
          CheckpointError: the path is a file.
        """
        if keep is not None and keep < 1:
            raise ConfigError(f"keep: expected at least 1 checkpoint, or None for all, found {keep}")
        self.directory = absolute(directory)
        if self.directory.is_file():
            raise CheckpointError(f"{self.directory}: expected a directory of checkpoints, found a file")
        remove_empty(self.directory)
        self._best = _Best()
        policies = ocp.checkpoint_managers
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), policies.CustomSteps(list(keep_steps)), self._best]
                ),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),  # of the first process: the position is the same in all
            },
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, step: int, state: Any, *, meta: Mapping[str, Any], iterator: Resumable | None = None) -> None:
        """Starts to save in the background. The caller may then donate or change all arguments.

        Saving the newest step again does nothing, because a step has only one state.

        Args:
          step: the number of updates made, larger than at any earlier save.
          state: a pytree of arrays.
          meta: a JSON object; see `describe`.
          iterator: the data, whose position is saved with the state.

        Raises:
          CheckpointError: the directory already has a later step, or this or the previous
            save cannot be written.
          TypeError: `meta` is not JSON.
        """
        latest = self.latest_step()
        if step == latest:
            return
        if latest is not None and step < latest:
            raise CheckpointError(f"{self.directory}: expected to save a step after {latest}, found step {step}")
        content = {"meta": json.loads(json.dumps(meta)), "arrays": digest.digests(state)}
        items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave(digest.with_checksum(content))}
        if iterator is not None:
            items["data"] = ocp.args.JsonSave(digest.with_checksum(pack_position(iterator.get_state())))
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def keep_best(self, step: int) -> None:
        """Keeps the checkpoint of a step as the best one; the previous best one is no longer kept."""
        self._best.step = step

    def steps(self) -> list[int]:
        """Returns the steps that are saved or being saved, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the newest of `steps`, or None if there is none."""
        return self._manager.latest_step()

    def restore(
        self, template: Tree, *, step: int | None = None, iterator: Resumable | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Reads a whole state, to resume the run that saved it. All processes must call it.

        A checkpoint that is damaged for one process is damaged for all.

        Args:
          template: a pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`.
            An array is restored with the sharding of the template's leaf, on the default
            device if the leaf has no sharding, and as a NumPy array if the leaf is one.
          step: None for the newest undamaged checkpoint. Newer ones are then removed, with
            a printed line for each; afterwards `latest_step` returns the step that was read.
          iterator: moved to the saved position in the data.

        Returns:
          (state, meta), bit for bit as they were saved.

        Raises:
          CheckpointError: there is no such checkpoint, or it does not fit the
            template or the iterator.
          DamagedCheckpointError: the checkpoint is not what was saved, or all are damaged.
        """
        self.wait()
        if step is not None:
            return self._restore(step, template, iterator)
        damaged: dict[int, str] = {}  # texts, because an error keeps the arrays that were read
        step_path(self.directory, None)  # raises an error if there is none
        for candidate in reversed(self.steps()):
            try:
                restored = self._restore(candidate, template, iterator)
            except DamagedCheckpointError as error:
                damaged[candidate] = str(error)
                continue
            for bad, reason in damaged.items():
                warning_log.warn(f"{reason}; it is removed, and the run continues from step {candidate}")
                self._manager.delete(bad)
            return restored
        raise DamagedCheckpointError(f"{damaged[max(damaged)]}; no other checkpoint is whole: remove {self.directory}")

    def _restore(self, step: int, template: Tree, iterator: Resumable | None) -> tuple[Tree, dict[str, Any]]:
        path, content = _find(self.directory, step)
        state = read_arrays(path, content["arrays"], template)
        if iterator is not None:
            position = processes.each(lambda: read_position(path))
            try:
                iterator.set_state(unpack_position(position))
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}/data: expected a place in this data, found {error!r}") from None
        return state, content["meta"]

    def wait(self) -> None:
        """Waits until the last save is on disk; raises CheckpointError if it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes the directory; raises CheckpointError if it cannot be written."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if files.is_bucket(self.directory):
                reason = files.describe_error(error)
            elif isinstance(error, OSError | ValueError | RuntimeError):  # from the disk, through orbax and tensorstore
                reason = " ".join(str(error).split())[:300]
            else:
                raise
            raise CheckpointError(f"{self.directory}: expected to write a checkpoint, found {reason}") from error


def describe(config: Mapping[str, Any], model: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a checkpoint for the next stage.

    Args:
      config: the recipe as plain data.
      model: the sizes of the network as plain data.
      tokenizer: the tokenizer of the training data.

    Returns:
      A JSON object with "config", "model", "tokenizer" (base64, see
      `tokenizer_bytes`) and "fingerprint" (the tokenizer's). Further keys may be added.
    """
    return {
        "config": dict(config),
        "model": dict(model),
        "tokenizer": base64.b64encode(tokenizer.to_bytes()).decode("ascii"),
        "fingerprint": tokenizer.fingerprint,
    }


def tokenizer_bytes(meta: Mapping[str, Any]) -> bytes:
    """Returns the bytes of the tokenizer that `describe` put into a meta."""
    return base64.b64decode(meta["tokenizer"])


def read_meta(directory: epath.PathLike, *, step: int | None = None) -> dict[str, Any]:
    """Reads the meta of a checkpoint, and none of its arrays.

    Args:
      directory: a directory of checkpoints.
      step: None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    return read_content(step_path(directory, step))["meta"]


def fingerprint(directory: epath.PathLike) -> str:
    """Returns 16 characters that change if the newest checkpoint does: its step, meta or arrays.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    path = step_path(directory, None)
    return digest.with_checksum([path.name, read_content(path)])["sha256"][:16]


def check_tokenizer(directory: epath.PathLike, fingerprint: str, *, step: int | None = None) -> None:
    """Raises TokenizerError if the checkpoint's tokenizer has another fingerprint."""
    found = read_meta(directory, step=step)["fingerprint"]
    if found != fingerprint:
        raise TokenizerError(f"{directory}: expected a checkpoint with tokenizer {fingerprint}, found {found}")


def restore_params(directory: epath.PathLike, template: Tree, *, item: str = "params", step: int | None = None) -> Tree:
    """Reads one part of a saved state, such as the weights that the next stage starts from.

    Nothing else is read, such as the optimizer state. All processes must call it.

    Args:
      directory: a directory of checkpoints.
      template: a pytree like that part; see `Checkpoints.restore`.
      item: the path of the part in the state: field names and keys joined by "/",
        such as "params", "ema" or "policy/ema".
      step: None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint, it has no such part, or an array
        differs from the template in shape or type.
      DamagedCheckpointError: it is not what was saved.
    """
    path, content = _find(directory, step)
    return read_arrays(path, content["arrays"], template, item.split("/"))


def _find(directory: epath.PathLike, step: int | None) -> tuple[epath.Path, dict[str, Any]]:
    """Returns `step_path` and what `read_content` finds there, or raises an error in all processes."""

    def find() -> tuple[epath.Path, dict[str, Any]]:
        path = step_path(directory, step)
        return path, read_content(path)

    return processes.each(find)
