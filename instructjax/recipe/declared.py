"""All declared sections, and the recipe that they make: the paper's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import ml_collections

from instructjax.recipe import program, stages
from instructjax.recipe.key import Key, Section

SOURCES = ("files", "sandbox", "e2e")  # where records come from: a recipe declares exactly one of these sections

# Sections that every recipe has, in the order in which they are shown.
REQUIRED: Mapping[str, Section] = {
    "guards": program.GUARDS,
    "data": program.DATA,
    "tokenizer": program.TOKENIZER,
    "model": program.MODEL,
    "optimizer": program.OPTIMIZER,
    "parallel": program.PARALLEL,
    "log": program.LOG,
    "ppo_log": program.PPO_LOG,
    "pretrain": stages.PRETRAIN,
    "sft": stages.SFT,
    "comparisons": stages.COMPARISONS,
    "reward": stages.REWARD,
    "ppo_init": stages.PPO_INIT,
    "ppo": stages.PPO,
    "evaluate": program.EVALUATE,
}
# Sections that a recipe may have: sources, and guests of this package.
OPTIONAL: Mapping[str, Section] = {
    "files": program.FILES,
    "sandbox": stages.SANDBOX,
    "e2e": stages.E2E,
    "dpo": stages.DPO,
}
SECTIONS: Mapping[str, Section] = {**REQUIRED, **OPTIONAL}

RENAMED: Mapping[str, str] = {  # keys of earlier versions
    "model.factors": "model.matmul_dtype",
    "parallel.shard_slots": "parallel.shard_optimizer_state",
}


def defaults(section: Section) -> ml_collections.ConfigDict:
    """Returns a section of a recipe with the declared values."""
    return ml_collections.ConfigDict({name: key.value for name, key in section.keys.items()})


def paper() -> ml_collections.ConfigDict:
    """Returns the paper's recipe for 1.3B on files of records, unlocked."""
    config = ml_collections.ConfigDict({name: key.value for name, key in program.ROOT.keys.items()})
    for name, section in {"files": program.FILES, **REQUIRED}.items():
        config[name] = defaults(section)
    return config


def declared_keys(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Key]]:
    """Yields the declared keys of the sections that a recipe has, by their dotted names."""
    yield from program.ROOT.keys.items()
    for name, section in SECTIONS.items():
        if name in REQUIRED or name in config:
            yield from ((f"{name}.{key}", declared) for key, declared in section.keys.items())


def unknown(key: str, config: ml_collections.ConfigDict) -> str:
    """Returns an error's text for a key that no section declares: its new name, or the nearest one.

    Args:
      key: dotted, such as "ppo.kl_coeficient".
      config: the recipe whose keys are candidates.
    """
    if key in RENAMED:
        return f"{key}: expected {RENAMED[key]}, which is its name now"
    names = [name for name, _ in declared_keys(config)]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    last = difflib.get_close_matches(key.rpartition(".")[2], [name.rpartition(".")[2] for name in names], n=1)
    if last and (same := [name for name in names if name.rpartition(".")[2] == last[0]]):
        near = difflib.get_close_matches(key, same, n=1, cutoff=0.0)
    return f"{key}: expected a key that the recipe declares, found no such key; did you mean {near[0]}?"
