"""Training a language model with cross-entropy: what pretraining, SFT and PPO's initial policy share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import optax
from etils import epath

from instructjax.batch import LMBatch
from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.models.config import TransformerConfig
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.models.transformer import LanguageModel
from instructjax.reporting import curves
from instructjax.runs import loop
from instructjax.stages import workspace
from instructjax.training import objectives, optimizer, parallel
from instructjax.training import state as train_state
from instructjax.training.step import train_step


def train(
    stage: str,
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    layout: Layout,
    shape: TransformerConfig,
    params: Callable[[], Any],
    batches: Callable[[], pipeline.Batches],
    schedule: optax.Schedule,
    *,
    steps: int,
    validation: dict[str, Sequence[LMBatch]],
    keep_steps: Sequence[int] = (),
) -> None:
    """Trains WORKDIR/STAGE on the config's section of that name.

    Args:
      stage: "pretrain", "sft" or "ppo_init".
      config: a whole recipe.
      workdir: the run's folder.
      layout: of prompts and responses; its tokenizer is saved with the checkpoints.
      shape: the model, without dropout; the section's dropout is added.
      params: gives the weights to start from.
      batches: makes the grain dataset.
      schedule: learning rate by update.
      steps: updates.
      validation: batches to measure, by what to call them in the metrics.
      keep_steps: checkpoints to keep beside the last ones.
    """
    directory = workspace.begin(config, workdir, stage)
    step, adam = make_step(stage, config, shape, schedule)
    loss = mean_loss(LanguageModel(shape))
    loop.run(
        stage,
        parallel.compile_step(step, config.parallel),
        parallel.build(
            functools.partial(train_state.create, optimizer=adam),
            params(),
            shard_optimizer_state=config.parallel.shard_optimizer_state,
        ),
        batches,
        workspace.root_key(config, stage),
        steps=steps,
        directory=directory,
        meta=workspace.describe(config, shape, layout.tokenizer),
        log=config.log,
        evaluate=lambda state: {f"{name}_loss": loss(state.params, part) for name, part in validation.items()},
        keep_steps=keep_steps,
        judge=workspace.judge(config),
        draw=functools.partial(curves.update, directory),
    )


def make_step(
    stage: str, config: ml_collections.ConfigDict, shape: TransformerConfig, schedule: optax.Schedule
) -> tuple[Callable, optax.GradientTransformation]:
    """The pure step of a stage, and its optimiser; see `train` for the arguments."""
    section = config[stage]
    adam = optimizer.adam(config.optimizer, schedule, section.weight_decay)
    step = train_step(
        objectives.language_model_loss(LanguageModel(dataclasses.replace(shape, dropout=section.dropout))),
        adam,
        microbatches=section.microbatches,
        axis_name=parallel.axis_name(config.parallel.mode),
    )
    return step, adam


def mean_loss(model: LanguageModel) -> Callable[[Any, Sequence[LMBatch]], float]:
    """`loss(params, batches)`: cross-entropy in nats per weighted token, over all batches.

    Args:
      model: a LanguageModel without dropout.
    """
    objective = objectives.language_model_loss(model)
    sums = jax.jit(lambda params, batch: replicate(objective(params, constrain_rows(batch), None)[0]))

    def loss(params: Any, batches: Sequence[LMBatch]) -> float:
        pairs = [jax.device_get(sums(params, batch)) for batch in batches]
        return float(sum(total for total, _ in pairs) / sum(weight for _, weight in pairs))

    return loss
