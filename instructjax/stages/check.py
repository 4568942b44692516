"""What is wrong about a recipe that can be known before any work starts, for all of its stages at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_collections

from instructjax.errors import ConfigError
from instructjax.models.transformer import TransformerConfig
from instructjax.records import MAX_RESPONSES
from instructjax.training import guards, invariants, loop, parallel

SOURCES = ("files", "sandbox", "e2e")  # sections of which a recipe declares one: where its records come from

_AT_LEAST_1 = (
    *("pretrain.steps", "pretrain.batch_size", "pretrain.length", "pretrain.microbatches"),
    *("sft.batch_size", "sft.microbatches", "sft.candidates", "sft.selection_prompts"),
    *("comparisons.prompts", "reward.batch_size", "reward.microbatches"),
    *("ppo_init.batch_size", "ppo_init.microbatches"),
    *("ppo.iterations", "ppo.batch_size", "ppo.minibatch_size", "ppo.epochs"),
    *("ppo.ptx_examples_per_episode", "ppo.ptx_microbatches", "ppo.ptx_length"),
    *("evaluate.prompts", "evaluate.judgements", "evaluate.few_shot_candidates"),
    *("evaluate.batch_size", "evaluate.text_windows"),
)
_ABOVE_0 = ("sft.epochs", "reward.epochs", "ppo_init.epochs", "ppo.temperature")
_AT_LEAST_0 = ("comparisons.temperature", "evaluate.temperature", "evaluate.few_shot")
_SHARES = (
    *("data.validation", "data.test", "ppo_init.text_share"),
    *("pretrain.dropout", "sft.dropout", "reward.dropout", "ppo_init.dropout"),
)


def recipe(config: ml_collections.ConfigDict) -> None:
    """Refuses a recipe with a value that is impossible, or with values that do not fit together.

    Args:
      config: a whole recipe.

    Raises:
      ConfigError: names the key, what was expected and what was found.
    """
    _source(config)
    for stage in ("pretrain", "reward"):
        if config[stage].import_from and not config.tokenizer.path:
            raise ConfigError(f"tokenizer.path: expected the tokenizer that {stage}.import_from comes with, found none")
    _require(config, "seed", lambda seed: 0 <= seed < 2**32 - 1, "0 to 2**32 - 2")
    for keys, good, expected in (
        (_AT_LEAST_1, lambda value: value >= 1, "at least 1"),
        (_ABOVE_0, lambda value: value > 0, "more than 0"),
        (_AT_LEAST_0, lambda value: value >= 0, "at least 0"),
        (_SHARES, lambda value: 0 <= value < 1, "from 0 to below 1"),
    ):
        for key in keys:
            _require(config, key, good, expected)
    invariants.check_action(config.invariants)
    guards.check(config.guards)
    loop.check(config.log, "log")
    loop.check(config.ppo_log, "ppo_log")
    _lengths(config)
    _batches(config)
    _labelers(config)


def _source(config: ml_collections.ConfigDict) -> None:
    declared = [source for source in SOURCES if source in config]
    if len(declared) != 1:
        raise ConfigError(
            f"expected one of the sections {', '.join(SOURCES)}, found {' and '.join(declared) or 'none'}"
        )
    if declared == ["files"]:
        for name, kind in (
            ("text", "Text"),
            ("demonstrations", "Demonstration"),
            ("prompts", "Prompt"),
            ("rankings", "Ranking"),
        ):
            if not config.files[name]:
                raise ConfigError(f"files.{name}: expected a file of {kind} records, found none")


def _lengths(config: ml_collections.ConfigDict) -> None:
    """The model, and whether every sequence fits into its context."""
    model = TransformerConfig(vocab_size=1, **config.model.to_dict())  # the vocabulary is the tokenizer's
    parallel.check_model(model, "model", config.parallel)
    limit = model.max_length
    needed = config.data.max_prompt + config.data.max_response
    if needed > limit:
        raise ConfigError(
            f"model.max_length: expected at least data.max_prompt + data.max_response = {needed} tokens, found {limit}"
        )
    for key in ("pretrain.length", "ppo.ptx_length"):
        _require(config, key, lambda length: length <= limit, f"at most model.max_length ({limit})")


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
    parallel.check_batch_size(ppo.minibatch_size, "ppo.minibatch_size", config.parallel)
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


def _require(config: ml_collections.ConfigDict, key: str, good: Callable[[Any], bool], expected: str) -> None:
    found = operator.attrgetter(key)(config)
    if not good(found):
        raise ConfigError(f"{key}: expected {expected}, found {found}")
