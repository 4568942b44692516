"""What is wrong about a recipe that can be known before any work starts, for all of its stages at once."""

from __future__ import annotations

import dataclasses
import math
import operator
import reprlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax.errors import ConfigError
from instructjax.models import sizes
from instructjax.models.config import DTYPES, TransformerConfig
from instructjax.records import MAX_RESPONSES
from instructjax.rollout import reward_function
from instructjax.training import parallel

SOURCES = ("files", "sandbox", "e2e")  # sections of which a recipe declares one: where its records come from

# With virtual CPU devices, collectives hang when about 33 steps are in flight un-awaited.
MAX_STEPS_IN_FLIGHT = 31


def _keys(*sections: str) -> tuple[str, ...]:
    """("sft.epochs", ...) of "sft: epochs ..."; a section without a name is the recipe itself."""
    split = (section.partition(":") for section in sections)
    return tuple(f"{name}.{key}".removeprefix(".") for name, _, rest in split for key in rest.split())


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# What each key of a recipe must be, whatever the others are. The sections of guests check their own.
_RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "0 to 2**32 - 2",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1,
        _keys(": seed"),
    ),
    (
        "an integer, at least 1",
        lambda value: _is_count(value, 1),
        _keys(
            "data: max_prompt max_response",
            "tokenizer: vocab_size max_documents",
            "model: num_layers d_model num_heads d_head d_ff max_length unroll logits_chunk",
            "guards: max_skipped",
            "parallel: fsdp tensor",
            "log: every save_every evaluate_every keep",
            "ppo_log: every save_every evaluate_every keep",
            "pretrain: steps batch_size length microbatches",
            "sft: batch_size microbatches candidates selection_prompts",
            "comparisons: prompts min_answers max_answers",
            "reward: batch_size microbatches",
            "ppo_init: batch_size microbatches",
            "ppo: iterations batch_size minibatch_size microbatches rollout_parts epochs",
            "ppo: ptx_examples_per_episode ptx_microbatches ptx_length",
            "evaluate: prompts judgements few_shot_candidates batch_size text_windows",
            "sandbox: documents demonstrations users reward_prompts prompts labelers heldout_labelers",
            "sandbox: validation_prompts raters",
        ),
    ),
    (
        "an integer, at least 0",
        lambda value: _is_count(value, 0),
        _keys("pretrain: warmup_steps", "ppo: warmup_iterations rollout_refill", "evaluate: few_shot"),
    ),
    (
        "an integer, at least 1, or -1",
        lambda value: _is_count(value, -1) and value != 0,
        _keys("parallel: data"),
    ),
    (
        "None or an integer, at least 1",
        lambda value: value is None or _is_count(value, 1),
        _keys("model: local_window"),
    ),
    (
        "more than 0",
        lambda value: _is_number(value) and value > 0,
        _keys(
            "model: init_std",
            "optimizer: epsilon clip_norm",
            "sft: epochs",
            "reward: epochs",
            "ppo_init: epochs",
            "ppo: temperature clip_ratio clip_value",
        ),
    ),
    (
        "at least 0",
        lambda value: _is_number(value) and value >= 0,
        _keys(
            "pretrain: learning_rate weight_decay",
            "sft: learning_rate weight_decay prompt_weight",
            "comparisons: temperature",
            "reward: learning_rate weight_decay",
            "ppo_init: learning_rate weight_decay prompt_weight",
            "ppo: learning_rate value_learning_rate weight_decay kl_coefficient missing_eos_penalty ptx_coefficient",
            "evaluate: temperature",
            "sandbox: noise tie",
        ),
    ),
    (
        "at least 0, or infinity",
        lambda value: value == math.inf or _is_number(value) and value >= 0,
        _keys("guards: max_kl min_response_tokens"),
    ),
    (
        "from 0 to below 1",
        lambda value: _is_number(value) and 0 <= value < 1,
        _keys(
            "data: validation test",
            "model: dropout",
            "optimizer: beta1 beta2",
            "pretrain: dropout",
            "sft: dropout",
            "reward: dropout",
            "ppo_init: dropout text_share",
        ),
    ),
    (
        "from 0 to 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
        _keys(
            "pretrain: final_fraction",
            "sft: final_fraction",
            "reward: final_fraction",
            "ppo_init: final_fraction",
            "ppo: discount gae_lambda ema_decay",
        ),
    ),
    (
        "True or False",
        lambda value: isinstance(value, bool),
        _keys("data: drop_long", "model: tied remat shard_length cache_by_layer", "parallel: shard_optimizer_state"),
    ),
    (
        "one of stop, warn",
        lambda value: value in ("stop", "warn"),
        _keys(": invariants", "guards: action"),
    ),
    (
        "text",
        lambda value: isinstance(value, str) and "\0" not in value,
        _keys(
            "files: text demonstrations rankings prompts",
            "e2e: directory",
            "data: separator",
            "tokenizer: path",
            "model: dtype matmul_dtype param_dtype",
            "parallel: mode",
            "pretrain: import_from",
            "sft: init_from",
            "reward: import_from init_from size",
            "ppo_init: init_from",
            "ppo: init_from reward_from reward_function frozen_dtype",
        ),
    ),
    (
        "a list of names",
        lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value),
        _keys("e2e: texts aspects", "evaluate: guests"),
    ),
)
_FIELDS = {field.name for field in dataclasses.fields(TransformerConfig)} - {"vocab_size"}


def keys(config: ml_collections.ConfigDict) -> None:
    """Refuses a recipe without one of the keys, or with a value that is impossible whatever the others are.

    Args:
      config: a whole recipe.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    for expected, good, names in _RULES:
        for key in names:
            section, _, name = key.rpartition(".")
            if section in SOURCES and section not in config:
                continue
            inner = config.get(section) if section else config
            if not isinstance(inner, ml_collections.ConfigDict):
                raise ConfigError(f"{section}: expected a section of the recipe, found {_brief(inner)}")
            if name not in inner:
                if key == "model.dropout":  # the stage's own
                    continue
                raise ConfigError(f"{key}: expected {expected}, found no such key in the recipe")
            if not good(inner[name]):
                raise ConfigError(f"{key}: expected {expected}, found {_brief(inner[name])}")
    if unknown := sorted(set(config.model) - _FIELDS):
        raise ConfigError(f"model.{unknown[0]}: expected one of {', '.join(sorted(_FIELDS))}, found no such key")


def recipe(config: ml_collections.ConfigDict) -> None:
    """Refuses a recipe with a value that is impossible, or with values that do not fit together.

    Args:
      config: a whole recipe.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    _source(config)
    keys(config)
    _files(config)
    for stage in ("pretrain", "reward"):
        if config[stage].import_from and not config.tokenizer.path:
            raise ConfigError(f"tokenizer.path: expected the tokenizer that {stage}.import_from comes with, found none")
    intervals(config.log, "log")
    intervals(config.ppo_log, "ppo_log")
    _lengths(config)
    _batches(config)
    _labelers(config)
    if config.ppo.reward_function:
        if jax.process_count() > 1:  # it would be called in one of them, and its errors not told to the others
            raise ConfigError('ppo.reward_function: expected "" in a run of several processes, found a function')
        reward_function.load(config.ppo.reward_function)


def intervals(log: ml_collections.ConfigDict, section: str = "log") -> None:
    """Refuses intervals that do not fit together.

    Args:
      log: the `log` or `ppo_log` section of a recipe.
      section: its name, for the error.

    Raises:
      ConfigError: names the key and what was expected.
    """
    most = MAX_STEPS_IN_FLIGHT - 1  # a line is read when the step after it is under way
    if not 1 <= log.every <= most:
        raise ConfigError(f"{section}.every: expected 1 to {most} steps, found {log.every}")
    if log.save_every < 1:
        raise ConfigError(f"{section}.save_every: expected at least 1 step, found {log.save_every}")
    if log.evaluate_every < 1 or log.evaluate_every % log.every:  # what is measured stands in a line of metrics
        raise ConfigError(
            f"{section}.evaluate_every: expected a multiple of {section}.every ({log.every}), "
            f"found {log.evaluate_every}"
        )
    if log.keep < 1:
        raise ConfigError(f"{section}.keep: expected at least 1 checkpoint, found {log.keep}")


def _source(config: ml_collections.ConfigDict) -> None:
    declared = [source for source in SOURCES if source in config]
    if len(declared) != 1:
        raise ConfigError(
            f"expected one of the sections {', '.join(SOURCES)}, found {' and '.join(declared) or 'none'}"
        )


def _files(config: ml_collections.ConfigDict) -> None:
    for name, kind in (
        ("text", "Text"),
        ("demonstrations", "Demonstration"),
        ("prompts", "Prompt"),
        ("rankings", "Ranking"),
    ):
        if "files" in config and not config.files[name]:
            raise ConfigError(f"files.{name}: expected a file of {kind} records, found none")


def _lengths(config: ml_collections.ConfigDict) -> None:
    """The model, and whether every sequence fits into its context."""
    model = TransformerConfig(vocab_size=1, **config.model.to_dict())  # the vocabulary is the tokenizer's
    parallel.check_model(model, "model", config.parallel)
    _reward_model(config, model)
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
    for key in ("pretrain.length", "ppo.ptx_length"):
        _require(config, key, lambda length: length <= limit, f"at most model.max_length ({limit})")


def _reward_model(config: ml_collections.ConfigDict, model: TransformerConfig) -> None:
    """The networks that are not the policy: their size, and what the frozen ones are held in."""
    size, frozen = config.reward.size, config.ppo.frozen_dtype or config.model.param_dtype
    if size not in ("", *sizes.SIZES):
        raise ConfigError(f'reward.size: expected "" or one of {", ".join(sizes.SIZES)}, found {size!r}')
    if size:
        parallel.check_model(sizes.resized(model, size), "reward", config.parallel)
        if not (config.reward.init_from or config.reward.import_from or config.ppo.reward_from):
            raise ConfigError(
                f"reward.init_from: expected the checkpoints of a policy of reward.size ({size}), or those of a reward "
                'model in ppo.reward_from, found none; reward.size="" makes reward models of the policy\'s size'
            )
    wide = [dtype for dtype in DTYPES if jnp.promote_types(dtype, config.model.dtype) == dtype]
    if frozen not in wide:
        raise ConfigError(
            f"ppo.frozen_dtype: expected one of {', '.join(wide)}, as networks compute in {config.model.dtype} "
            f"(model.dtype), found {frozen!r}"
        )


def _batches(config: ml_collections.ConfigDict) -> None:
    """Whether batches divide into minibatches, microbatches and devices."""
    for stage in ("pretrain", "sft", "reward", "ppo_init"):
        section = config[stage]
        parallel.check_batch_size(section.batch_size, f"{stage}.batch_size", config.parallel, section.microbatches)
    ppo = config.ppo
    if ppo.batch_size % ppo.minibatch_size:
        raise ConfigError(
            f"ppo.batch_size: expected a multiple of ppo.minibatch_size ({ppo.minibatch_size}), found {ppo.batch_size}"
        )
    parallel.check_batch_size(ppo.batch_size, "ppo.batch_size", config.parallel, ppo.rollout_parts)
    at_once = ppo.batch_size // ppo.rollout_parts
    _require(
        config,
        "ppo.rollout_refill",
        lambda refill: refill <= at_once,
        f"at most ppo.batch_size / ppo.rollout_parts ({at_once})",
    )
    parallel.check_batch_size(ppo.minibatch_size, "ppo.minibatch_size", config.parallel, ppo.microbatches)
    parallel.check_batch_size(
        ppo.minibatch_size * ppo.ptx_examples_per_episode,
        "ppo.minibatch_size x ppo.ptx_examples_per_episode",
        config.parallel,
        ppo.ptx_microbatches,
    )


def _labelers(config: ml_collections.ConfigDict) -> None:
    """The answers to a prompt, and who judges them."""
    most = config.comparisons.max_answers
    _require(config, "comparisons.max_answers", lambda k: 2 <= k <= MAX_RESPONSES, f"2 to {MAX_RESPONSES}")
    _require(config, "comparisons.min_answers", lambda k: 2 <= k <= most, f"2 to comparisons.max_answers ({most})")
    if "sandbox" in config:
        group = min(config.sandbox.labelers, config.sandbox.heldout_labelers)
        expected = f"to the {group} labelers of the smaller group"
        _require(config, "sandbox.raters", lambda raters: 2 <= raters <= group, f"2 {expected}")
        _require(config, "evaluate.judgements", lambda judgements: judgements <= group, f"1 {expected}")


def _brief(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())


def _require(config: ml_collections.ConfigDict, key: str, good: Callable[[Any], bool], expected: str) -> None:
    found = operator.attrgetter(key)(config)
    if not good(found):
        raise ConfigError(f"{key}: expected {expected}, found {found}")
