"""All declared sections, and the paper's recipe, which their values form."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from instructjax.errors import ConfigError
from instructjax.recipe import run_keys, stage_keys
from instructjax.recipe.key import Key, Section

# Where records come from: a recipe declares exactly one of these sections.
SOURCES = ("files", "sandbox", "e2e", "gsm8k", "arithmetic")

# Sections that every recipe has, in the order in which they are shown.
REQUIRED: Mapping[str, Section] = {
    "guards": run_keys.GUARDS,
    "data": run_keys.DATA,
    "mixture": run_keys.MIXTURE,
    "tokenizer": run_keys.TOKENIZER,
    "model": run_keys.MODEL,
    "optimizer": run_keys.OPTIMIZER,
    "lora": run_keys.LORA,
    "parallel": run_keys.PARALLEL,
    "log": run_keys.LOG,
    "ppo_log": run_keys.PPO_LOG,
    "tracking": run_keys.TRACKING,
    "pretrain": stage_keys.PRETRAIN,
    "sft": stage_keys.SFT,
    "comparisons": stage_keys.COMPARISONS,
    "reward": stage_keys.REWARD,
    "ppo_init": stage_keys.PPO_INIT,
    "ppo": stage_keys.PPO,
    "evaluate": stage_keys.EVALUATE,
}
# Sections that a recipe may have: sources, and guests of this package.
OPTIONAL: Mapping[str, Section] = {
    "files": run_keys.FILES,
    "sandbox": run_keys.SANDBOX,
    "e2e": run_keys.E2E,
    "gsm8k": run_keys.GSM8K,
    "arithmetic": run_keys.ARITHMETIC,
    "dpo": stage_keys.DPO,
}
SECTIONS: Mapping[str, Section] = {**REQUIRED, **OPTIONAL}

RENAMED: Mapping[str, str] = {  # keys of earlier versions
    "model.factors": "model.matmul_dtype",
    "data.drop_long": "data.strict",  # with the opposite value
    "parallel.shard_slots": "parallel.shard_optimizer_state",
}


ELSEWHERE: Mapping[str, str] = {  # names that other trainers of PPO give to keys
    "init_kl_coef": "kl_coefficient",
    "kl_coef": "kl_coefficient",
    "beta": "kl_coefficient",
    "target_kl": "kl_target",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "ent_coef": "entropy_coefficient",
    "entropy_coeff": "entropy_coefficient",
    "entropy_bonus": "entropy_coefficient",
    "gamma": "discount",
    "lam": "gae_lambda",
    "cliprange": "clip_ratio",
    "clip_range": "clip_ratio",
    "eps_clip": "clip_ratio",
    "cliprange_value": "clip_value",
    "value_clip": "clip_value",
    "num_ppo_epochs": "epochs",
    "ppo_epochs": "epochs",
    "num_mini_batches": "minibatch_size",
    "total_episodes": "iterations",
    "response_length": "data.max_response",
    "stop_token": "missing_eos_penalty",
    "reward_model_path": "reward_from",
    "sft_model_path": "init_from",
    "critic_learning_rate": "value_learning_rate",
    "normalize_rewards": "whiten_rewards",
    "num_generations": "samples_per_prompt",
}


def defaults(section: Section) -> ml_collections.ConfigDict:
    """Returns a section of a recipe, filled with the declared values."""
    return ml_collections.ConfigDict({name: key.value for name, key in section.keys.items()})


def paper() -> ml_collections.ConfigDict:
    """Returns the paper's recipe for 1.3B on files of records, unlocked."""
    config = ml_collections.ConfigDict({name: key.value for name, key in run_keys.ROOT.keys.items()})
    for name, section in {"files": run_keys.FILES, **REQUIRED}.items():
        config[name] = defaults(section)
    return config


def declared_keys(config: ml_collections.ConfigDict | None = None) -> Iterator[tuple[str, Key]]:
    """Yields the declared keys of the sections that a recipe has, or of all sections, by their dotted names."""
    yield from run_keys.ROOT.keys.items()
    for name, section in SECTIONS.items():
        if config is None or name in REQUIRED or name in config:
            yield from ((f"{name}.{key}", declared) for key, declared in section.keys.items())


def unknown(key: str, config: ml_collections.ConfigDict | None = None) -> str:
    """Returns the error text for a key that no section declares, with its new name or the nearest key.

    Args:
      key: dotted, such as "ppo.kl_coeficient".
      config: the recipe that has it; None to look in all sections.
    """
    if key in RENAMED:
        return f"{key}: expected {RENAMED[key]}, its new name, found the old one"
    names = [*dict(declared_keys(config)), *SECTIONS]
    section, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    elsewhere = [name for name in names if name.rpartition(".")[2] == last]
    foreign = ELSEWHERE.get(last, "") if section == "ppo" else ""
    near = (
        [foreign if "." in foreign else f"ppo.{foreign}"] * bool(foreign)
        or [siblings[name] for name in difflib.get_close_matches(last, siblings, n=1)]
        or difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.0)
        or difflib.get_close_matches(key, [name for name in names if "." in name], n=1, cutoff=0.8)
    )
    shown = f"{key:.80}"
    if near:
        return f"{shown}: expected a key that the recipe declares, found no such key; did you mean {near[0]}?"
    return f"{shown}: expected one of {', '.join(siblings or SECTIONS)}, found no such key"


def check_names(values: Mapping[str, Any], place: str, prefix: str = "") -> None:
    """Raises an error if a recipe that an earlier version wrote has a key under its old name.

    Args:
      values: the recipe as nested dictionaries, or one section of it.
      place: the file that has it, for the error.
      prefix: "model." if `values` is the section `model`.

    Raises:
      ConfigError: names the file, the old key and the new one.
    """
    for old, new in RENAMED.items():
        section, _, name = old.removeprefix(prefix).rpartition(".")
        found = values.get(section) if section else values
        if old.startswith(prefix) and isinstance(found, Mapping) and name in found:
            raise ConfigError(
                f"{place}: {old}: expected {new}, its new name, found the old one; continue with the version of "
                "instructjax that wrote it, or choose another --workdir"
            )
