"""Finds checkpoints in a directory, reads the files of one, and compares everything it reads with checksums."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError, DamagedCheckpointError
from instructjax.runs import digest, processes

# What tensorstore reports if a bucket cannot be reached. A checkpoint that is taken for damaged would be removed.
UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")

Tree = TypeVar("Tree")


def saved_steps(directory: epath.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints in a directory, in order; [] if there is no directory.

    An empty folder with the name of a step is not a checkpoint.

    Raises:
      WorkdirError: the bucket cannot be read.
    """
    directory = epath.Path(directory)
    if not files.exists(directory) or not directory.is_dir():
        return []
    return sorted(step for step in ocp.utils.checkpoint_steps(directory) if not _is_empty(directory / str(step)))


def step_path(directory: epath.PathLike, step: int | None) -> epath.Path:
    """Returns DIRECTORY/STEP, of the newest checkpoint if the step is None.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    directory = absolute(directory)
    if not files.exists(directory) or not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a directory of checkpoints, found none")
    steps = saved_steps(directory)
    if not steps:
        raise CheckpointError(f"{directory}: expected a checkpoint, found {_without_checkpoints(directory)}")
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory}: expected step {step}, found only {', '.join(map(str, steps))}")
    return directory / str(steps[-1] if step is None else step)


def remove_empty(directory: epath.Path) -> None:
    """Removes empty folders named like steps, which a run would mistake for its newest checkpoints."""
    if files.is_bucket(directory) or not directory.is_dir():  # a bucket has no empty folders
        return
    for step in ocp.utils.checkpoint_steps(directory):
        with contextlib.suppress(OSError):  # it is not empty, or another process has removed it
            os.rmdir(directory / str(step))


def absolute(directory: epath.PathLike) -> epath.Path:
    """Returns a directory of checkpoints as an absolute path, which Orbax needs."""
    directory = epath.Path(directory)
    return directory if files.is_bucket(directory) else directory.resolve()


def _is_empty(path: epath.Path) -> bool:
    return not files.is_bucket(path) and path.is_dir() and not any(path.iterdir())


def _without_checkpoints(directory: epath.Path) -> str:
    """Describes a directory without checkpoints, which may be one level above or below them."""
    for near in (directory / "checkpoints", directory.parent):
        if near.name == "checkpoints" and saved_steps(near):
            return f"none; did you mean {near}?"
    stages = sorted(path.parent.name for path in directory.glob("*/checkpoints") if saved_steps(path))
    if stages:
        return f"the folder of a run; did you mean {directory / stages[-1] / 'checkpoints'}?"
    return "an empty directory"


def read_content(path: epath.Path) -> dict[str, Any]:
    """Reads "meta", the object that was saved with a checkpoint, and "arrays", the `digests` of its state.

    Args:
      path: DIRECTORY/STEP.

    Raises:
      DamagedCheckpointError: it is not what was saved.
    """
    return _read_json(path / "meta" / "metadata")


def read_position(path: epath.Path) -> dict[str, Any]:
    """Reads the position in the data, as `pack_position` returned it; see `read_content`."""
    return _read_json(path / "data" / "metadata")


def pack_position(position: Any) -> dict[str, Any]:
    """Returns a position in the data, bytes or JSON, as a JSON object."""
    if isinstance(position, bytes):
        return {"bytes": base64.b64encode(position).decode("ascii")}
    return {"json": json.loads(json.dumps(position))}


def unpack_position(packed: Mapping[str, Any]) -> Any:
    """Undoes `pack_position`."""
    return base64.b64decode(packed["bytes"]) if "bytes" in packed else packed["json"]


def read_arrays(path: epath.Path, saved: Mapping[str, str], template: Tree, item: Sequence[str] = ()) -> Tree:
    """Reads the part of a state under the keys `item`, after comparing its types and shapes with the template.

    All processes must call it. If an array is damaged for one of them, all raise an error: each reads its own shards,
    and digests are computed only of what all have read.

    Args:
      path: DIRECTORY/STEP.
      saved: "arrays" of `read_content`.
      template: see `Checkpoints.restore`.
      item: the keys that lead to the part, such as ("policy", "ema"); () for the whole state.

    Raises:
      CheckpointError: the part is missing or does not fit the template, or the bucket cannot be reached.
      DamagedCheckpointError: it is not what was saved.
    """
    try:
        saved = digest.subtree(saved, item)
    except ValueError as error:
        raise CheckpointError(f"{path}: {'/'.join(item)}: {error}") from None
    try:
        digest.check_fit(saved, template)
    except ValueError as error:
        raise CheckpointError(f"{path}: {'/'.join((*item, ''))}{error}") from None
    read = processes.each(lambda: _restore(path / "state", template, item))
    found = digest.digests(read)
    processes.each(lambda: _compare(path, item, saved, found))  # a replicated array may differ between processes
    return read


def _compare(path: epath.Path, item: Sequence[str], saved: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises DamagedCheckpointError if a digest of what was read is not the saved one."""
    for place, value in found.items():
        if value != saved[place]:
            raise DamagedCheckpointError(
                f"{path}: {'/'.join((*item, place))}: expected the digest {saved[place]}, found {value}"
            )


def _read_json(path: epath.Path) -> Any:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: expected in the checkpoint, found no such file")
    try:
        return digest.verify_checksum(json.loads(path.read_bytes()))
    except ValueError as error:  # also if the bytes are not text, or the text is not JSON
        raise DamagedCheckpointError(f"{path}: {error}") from None


def _restore(path: epath.Path, template: Tree, item: Sequence[str]) -> Tree:
    tree: Any = template
    for key in reversed(item):
        tree = {key: tree}
    arguments = jax.tree.map(_restore_args, tree)
    # Orbax waits for no other process, which may fail to read its shards. The caller compares the outcomes.
    alone = ocp.options.MultiprocessingOptions(active_processes={jax.process_index()})
    try:
        read = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone).restore(
            path, args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True)
        )
    except Exception as error:  # orbax and tensorstore raise many kinds if files are cut or missing
        reason = " ".join(str(error).split())[:200]
        if any(status in reason for status in UNREACHABLE):
            raise CheckpointError(f"{path}: expected to reach the arrays, found {reason}") from error
        raise DamagedCheckpointError(f"{path}: expected readable arrays, found {reason}") from error
    for key in item:
        read = read[key]
    return jax.tree.map(_like, template, read)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = None if isinstance(leaf, jax.Array) and not leaf.committed else getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape)


def _like(leaf: Any, read: Any) -> Any:
    # Not committed to a device, so that it mixes with arrays of any mesh.
    return read if isinstance(leaf, np.ndarray) or isinstance(read, jax.Array) else jnp.array(read)
