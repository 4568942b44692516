"""Writes a model as a folder to share: its export, with a model card that is written from the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError, ConfigError, InputError
from instructjax.models import pretrained
from instructjax.models.transformer import LanguageModel, ScalarModel, abstract_params
from instructjax.reporting import model_card
from instructjax.reporting.model_card import Card
from instructjax.runs import folder, metrics_file
from instructjax.stages import beginning, exported, prepare, trained
from instructjax.stages.run import Run
from instructjax.text.templates import SEPARATOR

PASSED_ON = ("LICENSE*", "LICENSES/*", "NOTICE*")  # files of the base model; many licenses ask for them


def describe(run: Run, stage: str, name: str, license: str | None = None, given: Sequence[str] = ()) -> Card:
    """Collects what a model card says, without reading weights.

    Args:
      run: its folder is only read.
      stage: its name.
      name: of the model, such as "me/my-policy".
      license: its identifier; None for that of the base model.
      given: the keys of the recipe that the command line sets.

    Raises:
      CheckpointError: the stage is not finished, or the run was evaluated with earlier weights of it.
      ConfigError: the run began with another recipe.
      InputError: the base model names no license.
    """
    checkpoints = run.checkpoints(stage)
    beginning.check_recipe(run, stage)
    results = _results(run, stage)
    key, base = beginning.base(run, stage)
    is_reward_model = stage == "reward"
    network, layout = trained.describe(
        checkpoints, None if is_reward_model else folder.selected_step(run.workdir, stage)
    )
    model = ScalarModel(network) if is_reward_model else LanguageModel(network)
    shapes = abstract_params(model)
    lines = run.directory(stage) / "metrics.jsonl"
    return Card(
        name=name,
        stage=stage,
        recipe=run.recipe,
        config=run.config,
        given=given,
        code=folder.began(run.workdir, stage).get("code", "of an unknown version"),
        params=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)),
        prompt_end=layout.separator if layout.kind == SEPARATOR else None,
        max_response=layout.max_response,
        base=base,
        license=_license(key, base) if license is None else license,
        results=results,
        data=_data(run, results),
        metrics=metrics_file.read(lines) if files.exists(lines) else [],
    )


def write(run: Run, card: Card, output: epath.PathLike) -> str:
    """Writes the export, README.md with the card, and the license files of the base model.

    Args:
      run: its folder is only read.
      card: from `describe`.
      output: see `exported.export`, also for errors and for what is returned.
    """
    key, base = beginning.base(run, card.stage)
    source = files.parse(base, key, files.MODEL_SCHEMES) if base else None
    found = [path for pattern in PASSED_ON for path in (source.glob(pattern) if source and source.is_dir() else ())]
    others = {str(path.relative_to(source)): path.read_bytes() for path in found if path.is_file()}
    return exported.export(run, card.stage, output, {"README.md": model_card.write(card).encode(), **others})


def _results(run: Run, stage: str) -> dict[str, Any]:
    """Returns the content of results.json; {} if the run is not evaluated."""
    path = run.workdir / "results.json"
    if not files.exists(path):
        return {}
    results = files.read_json(path)
    if results["config"] != run.recipe:
        raise ConfigError(f"--config: expected {results['config']}, the recipe of {path}, found {run.recipe}")
    if stage in folder.outdated(run.workdir, results):
        raise CheckpointError(
            f"{path}: expected results of these weights of {stage}, found earlier ones; run evaluate.py"
        )
    return results


def _data(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Returns the counts of records; {} if the run has none, because its weights were imported."""
    if "data" in results:
        return results["data"]
    return prepare.summarize(run) if files.exists(run.data_folder / "checked.json") else {}


def _license(key: str, base: str) -> str:
    """Returns the license that the base model names; "" without a base model."""
    if not base:
        return ""
    source = files.parse(base, key, files.MODEL_SCHEMES)
    named = pretrained.read_license(source) if files.exists(source) else ""
    if not named:
        raise InputError(
            f"--license: expected the license of {key}={base}, which names none, found none; such as apache-2.0"
        )
    return named
