"""Arms: variants of a run in folders of their own, which share its finished stages and records."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from instructjax import files, records
from instructjax.data import prepared
from instructjax.data.prepared import SET_NAMES
from instructjax.errors import DataError
from instructjax.records import SPLITS, R, Ranking, Record
from instructjax.runs import processes
from instructjax.stages import beginning, copying, ppo, ppo_init, pretrain, reward, sft
from instructjax.stages.run import Run
from instructjax.stages.stage import StageFunction

FOLDER = "arms"  # in the WORKDIR of the run
_SHARED = {stage.declaration.name: stage for stage in (pretrain.run, sft.run, reward.run, ppo_init.run, ppo.run)}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A variant of a run: what its recipe changes, and the stages that it trains.

    Attributes:
      name: of its folder, WORKDIR/arms/NAME.
      stages: that it trains, in order. Stages that these start from are the run's.
      set: new values of keys of the recipe, by name, such as {"ppo.kl_coefficient": 0.0}.
      scale: factors of values of the recipe, so that an arm means the same in a smaller variant of it. An integer stays
        one, and is at least 1.
      records: by kind, a function of the run's training records and its seed, whose result the arm learns from instead.
        Validation and test records are the same in all arms. The run's source must have written its records to
        WORKDIR/data, as the sandbox does.
    """

    name: str
    stages: tuple[StageFunction, ...]
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: Mapping[str, float] = dataclasses.field(default_factory=dict)
    records: Mapping[type[Record], Callable[[Sequence[Any], int], list[Any]]] = dataclasses.field(default_factory=dict)


def make_run(base: Run, arm: Arm) -> Run:
    """Returns the run of an arm.

    Raises:
      KeyError: the recipe does not have a key that the arm changes.
    """
    config = base.config.copy_and_resolve_references()
    config.update_from_flattened_dict({**arm.set, **scaled(config, arm.scale)})
    return Run(config, base.workdir / FOLDER / arm.name, base.recipe)


def scaled(config: ml_collections.ConfigDict, factors: Mapping[str, float]) -> dict[str, Any]:
    """Returns values of a recipe, multiplied by factors."""
    found = {}
    for name, factor in factors.items():
        section, _, key = name.partition(".")
        value = config[section][key]
        found[name] = max(1, round(value * factor)) if isinstance(value, int) else value * factor
    return found


def train(base: Run, arm: Arm) -> Run:
    """Trains the stages of an arm that are not finished, and compares the recipe of those that are.

    Records, and the stages that the arm's start from, are copied from the run; see `copying.copy_stage`.

    Args:
      base: the run, with the stages that the arm starts from finished.
      arm: the arm.

    Returns:
      The run of the arm.

    Raises:
      ConfigError: a stage of the arm was trained with another recipe.
      DataError: it was trained with other records, or the run has not written records that the arm changes.
      CheckpointError: the run has another checkpoint of a stage that the arm starts from.
    """
    one = make_run(base, arm)
    written = {kind: _records(base, kind, choose) for kind, choose in arm.records.items()}
    processes.first(lambda: _copy_data(base, one, written))
    for stage in shared(arm):
        copying.copy_stage(base, one, stage)
    for stage in arm.stages:
        if one.is_finished(stage.declaration.name):
            _ = one.layout
            # A finished stage is not continued, so no key of its section may have changed.
            beginning.check(one, dataclasses.replace(stage.declaration, may_change=()))
        else:
            stage(one)
    return one


def shared(arm: Arm) -> list[StageFunction]:
    """Returns the stages of the run from which those of an arm start, and which the arm does not train."""
    own = {stage.declaration.name for stage in arm.stages}
    names = dict.fromkeys(name for stage in arm.stages for name in stage.declaration.after if name not in own)
    return [_SHARED[name] for name in names]


def _records(base: Run, kind: type[R], choose: Callable[[Sequence[R], int], list[R]]) -> bytes:
    """Returns the file of an arm's records of a kind."""
    path = prepared.written_file(kind, base.data_folder)
    if path not in base.source.files(kind, base.data_folder):
        raise DataError(f"{path}: expected records that the run has written, to change them in an arm, found none")
    held_out = (split for split in SPLITS[1:] if split in prepared.split_sizes(base.prepared_folder, SET_NAMES[kind]))
    kept = [record for split in held_out for record in base.records(kind, split)]
    return records.to_lines([*choose(base.records(kind, "train"), base.config.seed), *kept])


def _copy_data(base: Run, one: Run, written: Mapping[type[Record], bytes]) -> None:
    """Copies WORKDIR/data, which takes less time than to prepare the same records again, with other files of a kind.

    Raises:
      DataError: the arm has other files.
    """
    if one.data_folder.exists():
        for kind, content in written.items():
            path = prepared.written_file(kind, one.data_folder)
            if path.read_bytes() != content:
                raise DataError(f"{path}: expected the records that the arm now has, found others")
        return
    without = {name for kind in written for name in (SET_NAMES[kind], f"{SET_NAMES[kind]}.jsonl")}
    if Ranking in written:
        without.add("comparisons.json")  # it describes the run's rankings
    partial = one.workdir / ".data"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base.data_folder, partial, ignore=lambda _, names: without & set(names))
    for kind, content in written.items():
        files.write_bytes(prepared.written_file(kind, partial), content)
    os.replace(partial, one.data_folder)
