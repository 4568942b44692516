"""Checkpoints: how a run survives an interruption, and how the stages meet.

A directory of checkpoints holds one folder a step, written beside its final name
and then renamed, so that a folder that is there is whole:

    DIRECTORY/STEP/state  the arrays of the training state
    DIRECTORY/STEP/data   where the run was in its data
    DIRECTORY/STEP/meta   what the next stage has to know, as JSON, and a digest of each array

A run writes with `Checkpoints` and resumes with its `restore`. A next stage reads
the weights alone, with `read_meta` and `restore_params`. What is read is compared with its
digest: of a checkpoint that was damaged since, nothing is used.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from instructjax.errors import CheckpointError, ConfigError, DamagedCheckpointError, TokenizerError
from instructjax.runs import digest

Tree = TypeVar("Tree")


class Resumable(Protocol):
    """An iterator that can say where it is, such as those of grain."""

    def get_state(self) -> Any:
        """The place in the data: bytes, or something that JSON can write."""

    def set_state(self, state: Any) -> None:
        """Goes to a place that `get_state` gave."""


class Tokenizer(Protocol):
    """The part of a tokenizer that a checkpoint keeps."""

    @property
    def fingerprint(self) -> str:
        """A short name of its content."""

    def to_bytes(self) -> bytes:
        """The whole tokenizer, to be read again by the next stage."""


class Checkpoints:
    """Writes a run's checkpoints, and reads them again when the run resumes.

    A context manager: leaving it waits for the last save. Only one process at a
    time may write to a directory (a run of many processes counts as one).

    Attributes:
      directory: the absolute path, local or of a bucket.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None, keep_steps: Collection[int] = ()):
        """Opens a directory, creates it if needed, and removes what a killed run left unfinished.

        Args:
          directory: where the checkpoints go.
          keep: how many of the newest checkpoints to keep; None keeps all.
          keep_steps: steps whose checkpoints are kept besides, such as the ends of
            the SFT epochs, among which the reward model chooses (section 3.5).

        Raises:
          ConfigError: `keep` is less than 1.
          CheckpointError: there is a file of that name.
        """
        if keep is not None and keep < 1:
            raise ConfigError(f"keep: expected at least 1 checkpoint, or None for all, found {keep}")
        self.directory = epath.Path(directory).resolve()
        if self.directory.is_file():
            raise CheckpointError(f"{self.directory}: expected a directory of checkpoints, found a file")
        policies = ocp.checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), policies.CustomSteps(list(keep_steps))]
                ),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),  # of the first process: the place is the same in all
            },
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def save(self, step: int, state: Any, *, meta: Mapping[str, Any], iterator: Resumable | None = None) -> None:
        """Starts to save; training may go on, and may donate or change all three arguments.

        Saving the newest step again does nothing: the state of a step is one.

        Args:
          step: the number of updates made, larger than at any save before.
          state: a pytree of arrays.
          meta: a JSON object; see `describe`.
          iterator: the data, to be resumed with the state.

        Raises:
          CheckpointError: the directory already has a later step, or this or the last
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
            items["data"] = ocp.args.JsonSave(digest.with_checksum(_pack_place(iterator.get_state())))
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def steps(self) -> list[int]:
        """The steps that are saved or being saved, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest of `steps`, None where there is none."""
        return self._manager.latest_step()

    def restore(
        self, template: Tree, *, step: int | None = None, iterator: Resumable | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Reads a whole state, to resume the run that saved it.

        Args:
          template: a pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`.
            Arrays come back with the sharding of the template's leaf, on the default
            device where it has none, and as NumPy arrays where it is one.
          step: None for the newest that is whole. Newer ones, which are damaged, are then
            removed, and a line is printed that says so; `latest_step` tells what was read.
          iterator: moved to the saved place in the data.

        Returns:
          (state, meta), bit for bit as they were saved.

        Raises:
          CheckpointError: there is no such checkpoint, or it does not fit the
            template or the iterator.
          DamagedCheckpointError: the checkpoint is not what was saved, or none is.
        """
        self.wait()
        if step is not None:
            return self._restore(_step_path(self.directory, step), template, iterator)
        damaged: dict[int, DamagedCheckpointError] = {}
        _step_path(self.directory, None)
        for candidate in reversed(self.steps()):
            try:
                restored = self._restore(_step_path(self.directory, candidate), template, iterator)
            except DamagedCheckpointError as error:
                damaged[candidate] = error
                continue
            for bad, error in damaged.items():
                print(f"{error}; it is removed, and the run goes on from step {candidate}")
                self._manager.delete(bad)
            return restored
        raise DamagedCheckpointError(f"{damaged[max(damaged)]}; no other checkpoint is whole: remove {self.directory}")

    def _restore(self, path: epath.Path, template: Tree, iterator: Resumable | None) -> tuple[Tree, dict[str, Any]]:
        content = _read_content(path)
        state = _read_arrays(path, content["arrays"], template, ())
        if iterator is not None:
            place = _read_sealed(path / "data" / "metadata")
            try:
                iterator.set_state(_unpack_place(place))
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}/data: expected a place in this data, found {error!r}") from None
        return state, content["meta"]

    def wait(self) -> None:
        """Returns when the last save is on disk; CheckpointError: it cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and lets go of the directory; CheckpointError: it cannot be written."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # of the disk, by way of orbax and tensorstore
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{self.directory}: expected to write a checkpoint, found {reason}") from error


def describe(config: Mapping[str, Any], model: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the next stage has to know about a checkpoint.

    Args:
      config: the stage's config as plain data.
      model: the sizes of the network as plain data.
      tokenizer: the tokenizer that made the training data.

    Returns:
      A JSON object with "config", "model", "tokenizer" (base64, see
      `tokenizer_bytes`) and "fingerprint" (the tokenizer's).
    """
    return {
        "config": dict(config),
        "model": dict(model),
        "tokenizer": base64.b64encode(tokenizer.to_bytes()).decode("ascii"),
        "fingerprint": tokenizer.fingerprint,
    }


def tokenizer_bytes(meta: Mapping[str, Any]) -> bytes:
    """The tokenizer that `describe` put into a checkpoint, as `to_bytes` gave it."""
    return base64.b64decode(meta["tokenizer"])


def read_meta(directory: epath.PathLike, *, step: int | None = None) -> dict[str, Any]:
    """Reads what a checkpoint says about itself, and none of its arrays.

    Args:
      directory: a directory of checkpoints.
      step: None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    return _read_content(_step_path(directory, step))["meta"]


def fingerprint(directory: epath.PathLike) -> str:
    """Sixteen characters that change when the newest checkpoint does: its step, meta and arrays.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    path = _step_path(directory, None)
    return digest.with_checksum([path.name, _read_content(path)])["sha256"][:16]


def check_tokenizer(directory: epath.PathLike, fingerprint: str, *, step: int | None = None) -> None:
    """Raises TokenizerError unless the checkpoint's tokenizer has this fingerprint."""
    found = read_meta(directory, step=step)["fingerprint"]
    if found != fingerprint:
        raise TokenizerError(f"{directory}: expected a checkpoint with tokenizer {fingerprint}, found {found}")


def restore_params(directory: epath.PathLike, template: Tree, *, item: str = "params", step: int | None = None) -> Tree:
    """Reads one part of a saved state, such as the weights that the next stage starts from.

    Nothing else is read, in particular no optimiser state.

    Args:
      directory: a directory of checkpoints.
      template: a pytree like that part; see `Checkpoints.restore`.
      item: where the part is in the state: field names and keys joined by "/",
        such as "params", "ema" or "policy/ema".
      step: None for the newest.

    Raises:
      CheckpointError: there is no such checkpoint, it has no such part, or an array
        of it has another shape or type than the template.
      DamagedCheckpointError: it is not what was saved.
    """
    path = _step_path(directory, step)
    return _read_arrays(path, _read_content(path)["arrays"], template, tuple(item.split("/")))


def saved_steps(directory: epath.PathLike) -> list[int]:
    """The steps of whole checkpoints in a directory, in order; none where there is no directory."""
    directory = epath.Path(directory)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def _step_path(directory: epath.PathLike, step: int | None) -> epath.Path:
    directory = epath.Path(directory).resolve()
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a directory of checkpoints, found none")
    steps = saved_steps(directory)
    if not steps:
        raise CheckpointError(f"{directory}: expected a checkpoint, found an empty directory")
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory}: expected step {step}, found only {', '.join(map(str, steps))}")
    return directory / str(steps[-1] if step is None else step)


def _read_content(path: epath.Path) -> dict[str, Any]:
    """The "meta" that was saved with a checkpoint, and type, shape and digest of its "arrays"."""
    return _read_sealed(path / "meta" / "metadata")


def _read_sealed(path: epath.Path) -> Any:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: expected in the checkpoint, found no such file")
    try:
        return digest.verify_checksum(json.loads(path.read_bytes()))
    except ValueError as error:  # also of bytes that are no text, and of text that is no JSON
        raise DamagedCheckpointError(f"{path}: {error}") from None


def _read_arrays(path: epath.Path, saved: Mapping[str, str], template: Any, item: tuple[str, ...]) -> Any:
    """Reads the part of a state that lies under the keys `item`, once it is known to fit."""
    try:
        saved = digest.subtree(saved, item)
    except ValueError as error:
        raise CheckpointError(f"{path}: {'/'.join(item)}: {error}") from None
    try:
        digest.check_fit(saved, template)
    except ValueError as error:
        raise CheckpointError(f"{path}: {'/'.join((*item, ''))}{error}") from None
    tree = template
    for key in reversed(item):
        tree = {key: tree}
    try:
        read = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                item=tree, restore_args=jax.tree.map(_restore_args, tree), partial_restore=True
            ),
        )
    except Exception as error:  # whatever its libraries make of files that are cut or missing
        reason = " ".join(str(error).split())[:200]
        raise DamagedCheckpointError(f"{path}/state: expected readable arrays, found {reason}") from error
    for key in item:
        read = read[key]
    read = jax.tree.map(_place, template, read)
    for place, found in digest.digests(read).items():
        if found != saved[place]:
            raise DamagedCheckpointError(
                f"{path}: {'/'.join((*item, place))}: expected the digest {saved[place]}, found {found}"
            )
    return read


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Where the template wants the array; None where it has no wish."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = _sharding(leaf)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape)


def _place(leaf: Any, read: Any) -> Any:
    # Not committed to a device, so that it mixes with arrays of any mesh.
    return read if isinstance(leaf, np.ndarray) or isinstance(read, jax.Array) else jnp.array(read)


def _pack_place(place: Any) -> dict[str, Any]:
    if isinstance(place, bytes):
        return {"bytes": base64.b64encode(place).decode("ascii")}
    return {"json": json.loads(json.dumps(place))}


def _unpack_place(packed: Mapping[str, Any]) -> Any:
    return base64.b64decode(packed["bytes"]) if "bytes" in packed else packed["json"]
