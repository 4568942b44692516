"""What a stage began with, in its folder: it resumes only with the same recipe and records."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructjax import files
from instructjax.recipe.declared import SOURCES
from instructjax.rollout import reward_function
from instructjax.runs import checkpoint_files, folder, provenance
from instructjax.stages.declaration import Declaration
from instructjax.stages.run import Run

# What decides a stage's weights, apart from its own sections. Not `log` or `evaluate`, nor how devices share the work.
_SHARED = ("seed", "data", "mixture", "tokenizer", "model", "optimizer", *SOURCES)
_AFTER_OTHERS = ("lora",)  # of stages that start from the weights of others


def has_begun(run: Run, declaration: Declaration) -> bool:
    """Returns whether a stage has a checkpoint to continue from."""
    directory = run.directory(declaration.name)
    return files.exists(directory / "began.json") and bool(checkpoint_files.saved_steps(directory / "checkpoints"))


def check(run: Run, declaration: Declaration) -> None:
    """Raises an error if the recipe or the records differ from those that the stage began with.

    Raises:
      ConfigError: see `provenance.check_config`; what may change is logging, evaluation and the sections of other
        stages.
      DataError: see `provenance.check`.
    """
    directory, sections = run.directory(declaration.name), (*_SHARED, *declaration.sections)
    if declaration.after:
        sections += _AFTER_OTHERS
    provenance.check_config(run.config, directory / "config.json", sections, may_change=declaration.may_change)
    functions = _functions(run, declaration)
    provenance.check(directory / "began.json", run.prepared_folder, declaration.uses, functions)


def check_recipe(run: Run, stage: str) -> None:
    """Raises an error if the recipe differs from what a stage of this run, or one before it, began with.

    Raises:
      ConfigError: see `provenance.check_config`.
    """
    began = folder.began(run.workdir, stage).get("stage")
    if began is None:  # of another run, which the recipe names
        return
    sections = (*_SHARED, *began["sections"], *(_AFTER_OTHERS if began["after"] else ()))
    path = run.directory(stage) / "config.json"
    advice = "give the flags with which the run was made"
    provenance.check_config(run.config, path, sections, may_change=began["may_change"], advice=advice)
    for before in began["after"]:
        check_recipe(run, before)


def base(run: Run, stage: str) -> tuple[str, str]:
    """Returns the key and the folder of the weights that a stage of this run descends from, if they are of elsewhere.

    Returns:
      For example ("pretrain.import_from", "gpt2"), or ("", "") if all began in this run.
    """
    began: dict[str, Any] = folder.began(run.workdir, stage).get("stage", {})
    section = began.get("section", stage)
    for key in ("import_from", "init_from"):
        if found := run.config.get(section, {}).get(key, ""):
            return f"{section}.{key}", found
    return base(run, began["after"][0]) if began.get("after") else ("", "")


def note(run: Run, declaration: Declaration) -> None:
    """Notes what a stage is about to train with, and removes the results that describe its earlier weights.

    A stage that continues keeps the note of what it began with. Its config.json is that of its last start: keys that
    may change may have changed.
    """
    directory = run.directory(declaration.name)
    begun = has_begun(run, declaration)
    folder.forget_results(run.workdir, declaration.name)
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / "config.json", run.config.to_dict())
    if not begun:
        described = provenance.describe(run.prepared_folder, declaration.uses, _functions(run, declaration))
        files.write_json(directory / "began.json", {**described, "stage": dataclasses.asdict(declaration)})


def _functions(run: Run, declaration: Declaration) -> dict[str, str]:
    """Returns the digest of the file of the stage's reward function, by its name, if it has one."""
    name = run.config[declaration.section].get("reward_function", "")
    return {name: reward_function.load(name, f"{declaration.section}.reward_function").digest()} if name else {}
