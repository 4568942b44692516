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
from instructjax.errors import DataError
from instructjax.records import Ranking
from instructjax.runs import folder, processes
from instructjax.sources.sandbox import HELDOUT_RANKINGS
from instructjax.stages import beginning, comparisons, copying, ppo, ppo_init, pretrain, reward, sft
from instructjax.stages.run import Run
from instructjax.stages.stage import StageFunction

FOLDER = "arms"  # in the WORKDIR of the run
_RANKINGS = ("rankings", "rankings.jsonl", HELDOUT_RANKINGS, "comparisons.json")  # in WORKDIR/data
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
      rankings: chooses or changes the training rankings of the run; None for all of them. Validation rankings are the
        same in all arms.
    """

    name: str
    stages: tuple[StageFunction, ...]
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rankings: Callable[[Sequence[Ranking]], list[Ranking]] | None = None


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
      DataError: it was trained with other records.
      CheckpointError: the run has another checkpoint of a stage that the arm starts from.
    """
    one = make_run(base, arm)
    processes.first(lambda: _copy_data(base, one, without=_RANKINGS if arm.rankings else ()))
    for stage in shared(arm):
        copying.copy_stage(base, one, stage)
    if arm.rankings:
        _give_rankings(base, one, arm.rankings)
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


def _copy_data(base: Run, one: Run, without: Sequence[str]) -> None:
    """Copies WORKDIR/data, which takes less time than to prepare the same records again."""
    if one.data_folder.exists():
        return
    partial = one.workdir / ".data"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base.data_folder, partial, ignore=lambda _, names: set(names) & set(without))
    os.replace(partial, one.data_folder)


def _give_rankings(base: Run, one: Run, choose: Callable[[Sequence[Ranking]], list[Ranking]]) -> None:
    """Adds the arm's rankings, or compares them with those that it has."""
    given = [*choose(base.records(Ranking, "train")), *base.records(Ranking, "validation")]
    if not one.has(Ranking):
        comparisons.add(one, given, records.read(base.data_folder / HELDOUT_RANKINGS, Ranking))
        return
    name = prepared.written_file(Ranking, one.data_folder).name
    found = files.read_json(one.data_folder / "comparisons.json")["files"][name]
    if found != (expected := folder.digest(records.to_lines(given))):
        raise DataError(f"{one.data_folder / name}: expected the arm's rankings ({expected}), found others ({found})")
