"""Builds the programs of a recipe as its stages do, with shapes instead of arrays.

Batches have the maximum size: every demonstration and every ranking has its own row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax.batch import RankingBatch
from instructjax.errors import ConfigError
from instructjax.models import flops
from instructjax.models.lora import LoraConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.planning import ppo_programs, shapes
from instructjax.stages.adapter_base import lora_config
from instructjax.stages.training_step import training_step, with_dropout
from instructjax.training import objectives, optimizer
from instructjax.training import state as train_state
from instructjax.training.step import Loss


def build(name: str, config: ml_collections.ConfigDict) -> shapes.Program:
    """Builds one program of a recipe.

    Args:
      name: a key of `PROGRAMS`.
      config: a whole recipe.

    Raises:
      ConfigError: the recipe is for pmap, or a value of `model` is not allowed.
    """
    if config.parallel.mode != "jit":
        raise ConfigError(f"parallel.mode: expected 'jit' for a plan, found {config.parallel.mode!r}")
    return PROGRAMS[name](name, config)


def _language_model(stage: str, config: ml_collections.ConfigDict) -> shapes.Program:
    section, adapters = config[stage], None if stage == "pretrain" else lora_config(config)
    shape, _ = shapes.model_configs(config)
    length = section.length if stage == "pretrain" else config.data.max_prompt + config.data.max_response
    model = LanguageModel(with_dropout(shape, config, stage))
    step, adam = _training_step(config, stage, objectives.language_model_loss(model), adapters)
    base, learned = shapes.learned(LanguageModel(shape), adapters)
    forward = flops.forward_flops(shape, section.batch_size, length, length)
    rows = section.batch_size, length, section.microbatches
    work = flops.update_work(shape, forward, *rows, outputs=length, adapters=adapters)
    return shapes.Program(
        name=stage,
        function=step,
        state=jax.eval_shape(lambda params: train_state.create(params, adam), learned),
        batch=shapes.lm_batch(section.batch_size, length),
        constants=base,
        donated=True,
        phases={"gradients": work, "update": flops.adam_work(shape, adapters)},
        rows=_microbatch(stage, section),
    )


def _reward(name: str, config: ml_collections.ConfigDict) -> shapes.Program:
    """Builds a step on the longest rankings that the recipe allows, one per row.

    Shorter rankings need less.
    """
    section, adapters = config.reward, lora_config(config)
    _, shape = shapes.model_configs(config)
    answers = config.comparisons.max_answers
    length = config.data.max_prompt + answers * config.data.max_response
    model = ScalarModel(with_dropout(shape, config, "reward"))
    step, adam = _training_step(config, "reward", objectives.ranking_loss(model), adapters)
    base, learned = shapes.learned(ScalarModel(shape), adapters)
    unit = shapes.devices(config) * section.microbatches
    rows = -(-section.batch_size // unit) * unit  # the stage pads a batch until it divides
    tokens, ends = shapes.array((rows, length), jnp.int32), shapes.array((rows, 1, answers), jnp.int32)
    forward = flops.ranking_flops(shape, section.batch_size, config.data.max_prompt, answers, config.data.max_response)
    work = flops.update_work(shape, forward, section.batch_size, length, section.microbatches, adapters=adapters)
    return shapes.Program(
        name=name,
        function=step,
        state=jax.eval_shape(lambda params: train_state.create(params, adam), learned),
        batch=RankingBatch(
            *(tokens, tokens, tokens, tokens, ends),
            shapes.array(ends.shape, jnp.float32),
            shapes.array(ends.shape, bool),
        ),
        constants=base,
        donated=True,
        phases={"gradients": work, "update": flops.adam_work(shape, adapters)},
        rows={},
    )


PROGRAMS: dict[str, Callable[[str, ml_collections.ConfigDict], shapes.Program]] = {
    "pretrain": _language_model,
    "sft": _language_model,
    "reward": _reward,
    "ppo_init": _language_model,
    **{f"ppo {part}": functools.partial(ppo_programs.build, with_text=False) for part in ppo_programs.PARTS},
    **{f"ppo_ptx {part}": functools.partial(ppo_programs.build, with_text=True) for part in ppo_programs.PARTS},
}


def _microbatch(stage: str, section: ml_collections.ConfigDict) -> dict[str, tuple[int, int]]:
    return {f"{stage}.batch_size / {stage}.microbatches": (section.batch_size, section.microbatches)}


def _training_step(
    config: ml_collections.ConfigDict, section: str, loss: Loss, adapters: LoraConfig | None
) -> tuple[Callable, Any]:
    """Returns a stage's step and optimizer; no shape depends on the number of its steps."""
    schedule = optimizer.cosine_schedule(config[section].learning_rate, 100)
    return training_step(config, section, loss, schedule, has_base=adapters is not None)
