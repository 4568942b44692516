"""Checks a recipe before any work starts, for all of its stages at once.

Ranges of single keys are declared in run_keys.py and stage_keys.py. Here are the rules between keys.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_collections

from instructjax import files
from instructjax.data import mixtures
from instructjax.errors import ConfigError
from instructjax.models import lora, sizes
from instructjax.models.config import DTYPES, TransformerConfig
from instructjax.models.lora import LoraConfig
from instructjax.recipe import run_keys
from instructjax.recipe.declared import REQUIRED, SECTIONS, SOURCES, unknown
from instructjax.recipe.key import Key, Section
from instructjax.rollout import reward_function
from instructjax.training import parallel

# Where keys with some names may point to, by scheme; all others may point to any bucket.
_SCHEMES = {
    "import_from": files.MODEL_SCHEMES,
    "tokenizer.path": files.MODEL_SCHEMES,
    "init_from": files.RUN_SCHEMES,
    "reward_from": files.RUN_SCHEMES,
    "prepared": (),
}

_OF_THE_CRITIC = ("value_warmup_iterations", "discount", "gae_lambda", "clip_value")


def keys(config: ml_collections.ConfigDict) -> None:
    """Checks that a recipe has the declared keys and no others, and that each value is in its range.

    Sections that this package does not declare belong to guest stages, which declare and check them.

    Args:
      config: a whole recipe.

    Raises:
      ConfigError: names the key, what was expected and what was found.
      InputError: a path cannot be opened; see `files.parse`.
    """
    for name, value in config.items():
        if name not in run_keys.ROOT.keys and not isinstance(value, ml_collections.ConfigDict):
            raise ConfigError(unknown(str(name), config))
    for name, key in run_keys.ROOT.keys.items():
        _key(config, name, name, key)
    for name, declared in SECTIONS.items():
        if name in config or name in REQUIRED:
            section(config, name, declared)


def section(config: ml_collections.ConfigDict, name: str, declared: Section) -> None:
    """Checks that a section has its declared keys and no others, and that each value is in its range.

    Args:
      config: a whole recipe.
      name: the name of the section.
      declared: its keys.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    if name not in config:
        raise ConfigError(f"{name}: expected a section of the recipe, found none")
    found = config[name]
    if not isinstance(found, ml_collections.ConfigDict):
        raise ConfigError(f"{name}: expected a section of the recipe, found {_brief(found)}")
    for key in found:
        if key not in declared.keys:
            raise ConfigError(unknown(f"{name}.{key}", config))
    for key, declaration in declared.keys.items():
        _key(found, key, f"{name}.{key}", declaration)


def _key(found: ml_collections.ConfigDict, name: str, place: str, key: Key) -> None:
    if name not in found:
        raise ConfigError(f"{place}: expected {key.range.expected}, found no such key in the recipe")
    if not key.range.contains(found[name]):
        raise ConfigError(f"{place}: expected {key.range.expected}, found {_brief(found[name])}")
    if key.unit in ("path", "paths") and found[name]:
        schemes = _SCHEMES.get(name, _SCHEMES.get(place, tuple(files.PACKAGES)))
        for path in files.split_list(found[name]) if key.unit == "paths" else [found[name]]:
            files.parse(path, place, schemes)


def recipe(config: ml_collections.ConfigDict) -> None:
    """Checks a recipe: each value on its own, and whether the values fit together.

    Args:
      config: a whole recipe.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    _source(config)
    keys(config)
    for stage in ("pretrain", "reward"):
        if config[stage].import_from and not config.tokenizer.path:
            raise ConfigError(f"tokenizer.path: expected the tokenizer that {stage}.import_from comes with, found none")
    if config.data.template == "chat" and not config.tokenizer.path:
        raise ConfigError(
            "tokenizer.path: expected a tokenizer with a chat template for data.template=chat, found none"
        )
    if config.data.every_answer and config.data.template != "chat":
        raise ConfigError(
            "data.every_answer: expected False with data.template=separator, which does not tell answers apart, "
            "found True"
        )
    intervals(config.log, "log")
    intervals(config.ppo_log, "ppo_log")
    _param_dtype(config)
    _lengths(config)
    _batches(config)
    _labelers(config)
    mixtures.check_form(config.mixture)
    ppo_section(config, "ppo")
    if config.ppo.reward_function:
        reward_function.load(config.ppo.reward_function)  # which is tried out when prompts are prepared


def intervals(log: ml_collections.ConfigDict, section: str = "log") -> None:
    """Checks the intervals between lines of metrics, evaluations and checkpoints.

    Args:
      log: the `log` or `ppo_log` section of a recipe.
      section: its name, for the error.

    Raises:
      ConfigError: names the key and what was expected.
    """
    for name, key in REQUIRED[section].keys.items():
        _key(log, name, f"{section}.{name}", key)
    if log.evaluate_every % log.every:  # evaluations are written with a line of metrics
        raise ConfigError(
            f"{section}.evaluate_every: expected a multiple of {section}.every ({log.every}), "
            f"found {log.evaluate_every}"
        )


def _source(config: ml_collections.ConfigDict) -> None:
    declared = [source for source in SOURCES if source in config]
    if len(declared) != 1:
        raise ConfigError(
            f"expected one of the sections {', '.join(SOURCES)}, found {' and '.join(declared) or 'none'}"
        )


def _param_dtype(config: ml_collections.ConfigDict) -> None:
    wide = [dtype for dtype in DTYPES if jnp.promote_types(dtype, jnp.float32) == dtype]
    if (found := config.model.param_dtype) not in wide:
        raise ConfigError(
            f"model.param_dtype: expected {' or '.join(wide)}, because {found} rounds away updates of 1e-5, "
            f"found {found!r}; to compute in {found}, set model.dtype"
        )


def _lengths(config: ml_collections.ConfigDict) -> None:
    """Checks the model, and that every sequence fits into its context."""
    model = TransformerConfig(vocab_size=1, **config.model.to_dict())  # the vocabulary is the tokenizer's
    parallel.check_model(model, "model", config.parallel)
    _reward_model(config, model)
    _lora(config, model)
    limit = model.max_length
    needed = config.data.max_prompt + config.data.max_response
    if config.data.validation + config.data.test >= 1:
        raise ConfigError(
            f"data.validation + data.test: expected less than 1, found {config.data.validation + config.data.test}"
        )
    if needed > limit:
        raise ConfigError(
            f"model.max_length: expected at least data.max_prompt + data.max_response = {needed} tokens, found {limit}"
        )
    _require(config, "pretrain.length", lambda length: length <= limit, f"at most model.max_length ({limit})")


def _reward_model(config: ml_collections.ConfigDict, model: TransformerConfig) -> None:
    """Checks the size of reward model and value network."""
    size = config.reward.size
    if size:
        parallel.check_model(sizes.resized(model, size), "reward", config.parallel)
        if not (config.reward.init_from or config.reward.import_from or config.ppo.reward_from):
            raise ConfigError(
                f"reward.init_from: expected the checkpoints of a policy of reward.size ({size}), or those of a reward "
                'model in ppo.reward_from, found none; reward.size="" makes reward models of the policy\'s size'
            )


def _lora(config: ml_collections.ConfigDict, model: TransformerConfig) -> None:
    """Checks that each network has the kernels of its adapters, and that networks that share a base have one shape."""
    settings, size = config.lora, config.reward.size
    if not settings.rank:
        return
    adapters = LoraConfig(settings.rank, settings.alpha, settings.dropout, tuple(settings.matrices))
    for network in (model, sizes.resized(model, size)):
        lora.adapted(adapters, network)
    if size and settings.one_base:
        raise ConfigError(
            f'reward.size: expected "", the policy\'s, because the networks of PPO share one base (lora.one_base), '
            f"found {size!r}"
        )


def _batches(config: ml_collections.ConfigDict) -> None:
    """Checks that batches divide into minibatches, microbatches and devices."""
    for stage in ("pretrain", "sft", "reward", "ppo_init"):
        section = config[stage]
        parallel.check_batch_size(section.batch_size, f"{stage}.batch_size", config.parallel, section.microbatches)


def ppo_section(config: ml_collections.ConfigDict, name: str) -> None:
    """Checks that the keys of PPO's section fit each other and the rest of the recipe.

    Args:
      config: a whole recipe.
      name: `ppo`, or the name of a guest's section with the same keys.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    ppo, limit = config[name], config.model.max_length
    _require(config, f"{name}.ptx_length", lambda length: length <= limit, f"at most model.max_length ({limit})")
    wide = [dtype for dtype in DTYPES if jnp.promote_types(dtype, config.model.dtype) == dtype]
    if (frozen := ppo.frozen_dtype or config.model.param_dtype) not in wide:
        key = f"{name}.frozen_dtype" if ppo.frozen_dtype else "model.param_dtype"
        raise ConfigError(
            f"{key}: expected one of {', '.join(wide)}, as networks compute in {config.model.dtype} "
            f"(model.dtype), found {frozen!r}"
        )
    if ppo.batch_size % ppo.minibatch_size:
        raise ConfigError(
            f"{name}.batch_size: expected a multiple of {name}.minibatch_size ({ppo.minibatch_size}), "
            f"found {ppo.batch_size}"
        )
    divides = f"a divisor of {name}.batch_size ({ppo.batch_size})"
    _require(config, f"{name}.samples_per_prompt", lambda samples: ppo.batch_size % samples == 0, divides)
    _estimator(ppo, name)
    parallel.check_batch_size(ppo.batch_size, f"{name}.batch_size", config.parallel, ppo.rollout_parts)
    prompts = f"{name}.batch_size / {name}.samples_per_prompt"
    parts = 1 if ppo.rollout_refill else ppo.rollout_parts  # without refilling, a part has whole groups
    parallel.check_batch_size(ppo.batch_size // ppo.samples_per_prompt, prompts, config.parallel, parts)
    at_once = ppo.batch_size // ppo.rollout_parts
    _require(
        config,
        f"{name}.rollout_refill",
        lambda refill: refill <= at_once,
        f"at most {name}.batch_size / {name}.rollout_parts ({at_once})",
    )
    most = 1 if ppo.rollout_refill else config.data.max_prompt.bit_length()
    reason = (
        f" with {name}.rollout_refill" if ppo.rollout_refill else f", as data.max_prompt is {config.data.max_prompt}"
    )
    _require(config, f"{name}.rollout_widths", lambda widths: widths <= most, f"at most {most}{reason}")
    parallel.check_batch_size(ppo.minibatch_size, f"{name}.minibatch_size", config.parallel, ppo.microbatches)
    if ppo.pack_episodes and ppo.microbatches == 1:
        raise ConfigError(
            f"{name}.microbatches: expected at least 2 with {name}.pack_episodes, which skips the microbatches that no "
            f"episode is left for, found {ppo.microbatches}"
        )
    parallel.check_batch_size(
        ppo.minibatch_size * ppo.ptx_examples_per_episode,
        f"{name}.minibatch_size x {name}.ptx_examples_per_episode",
        config.parallel,
        ppo.ptx_microbatches,
    )


def _estimator(ppo: ml_collections.ConfigDict, name: str) -> None:
    """Checks that the estimator of advantages has what it compares with, and that no key is without effect."""
    if ppo.value_warmup_iterations >= ppo.iterations:
        raise ConfigError(
            f"{name}.value_warmup_iterations: expected less than {name}.iterations ({ppo.iterations}), "
            f"found {ppo.value_warmup_iterations}"
        )
    if ppo.advantages == "gae":
        return
    if ppo.samples_per_prompt < 2:
        raise ConfigError(
            f"{name}.samples_per_prompt: expected at least 2 with {name}.advantages={ppo.advantages}, found 1"
        )
    for key in _OF_THE_CRITIC:  # `value_learning_rate` is left alone: every recipe sets it
        if ppo[key] != (value := SECTIONS["ppo"].keys[key].value):
            raise ConfigError(
                f"{name}.{key}: expected {value}, its default, because {name}.advantages={ppo.advantages} has no value "
                f"network, found {ppo[key]}"
            )
    if ppo.reward_function and ppo.reward_from:
        raise ConfigError(
            f"{name}.reward_from: expected no reward model, because {name}.reward_function gives the rewards and "
            f"{name}.advantages={ppo.advantages} has no value network, found {ppo.reward_from}"
        )


def _labelers(config: ml_collections.ConfigDict) -> None:
    """Checks the number of answers per prompt, of the policies that give them, and of the labelers who judge them."""
    least, most = config.comparisons.min_answers, config.comparisons.max_answers
    _require(config, "comparisons.min_answers", lambda k: k <= most, f"at most comparisons.max_answers ({most})")
    expected = f"1 to {least} stages (comparisons.min_answers), each once"
    _require(config, "comparisons.stages", lambda names: 1 <= len(set(names)) == len(names) <= least, expected)
    if "sandbox" in config:
        group = min(config.sandbox.labelers, config.sandbox.heldout_labelers)
        expected = f"to the {group} labelers of the smaller group"
        _require(config, "sandbox.raters", lambda raters: 2 <= raters <= group, f"2 {expected}")
        _require(config, "evaluate.judgements", lambda judgements: judgements <= group, f"1 {expected}")
        asked = config.comparisons.skip + config.comparisons.prompts
        expected = f"at least {asked} (comparisons.skip + comparisons.prompts)"
        _require(config, "sandbox.reward_prompts", lambda n: n >= asked or not config.comparisons.skip, expected)


def _brief(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())


def _require(config: ml_collections.ConfigDict, key: str, good: Callable[[Any], bool], expected: str) -> None:
    found = operator.attrgetter(key)(config)
    if not good(found):
        raise ConfigError(f"{key}: expected {expected}, found {found}")
