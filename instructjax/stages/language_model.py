"""Trains a language model with cross-entropy: what pretraining, SFT and PPO's initial policy share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optax

from instructjax.batch import LMBatch
from instructjax.data import pipeline
from instructjax.evaluation.language_models import held_out_loss
from instructjax.models.transformer import LanguageModel
from instructjax.runs.callbacks import Callbacks
from instructjax.stages.stage import Stage
from instructjax.stages.training_step import with_dropout
from instructjax.training import objectives
from instructjax.training.state import Params, TrainState


def train(
    stage: Stage,
    start: Callable[[], Params],
    batches: Callable[[], pipeline.Batches],
    *,
    steps: int,
    held_out: Mapping[str, Sequence[LMBatch]],
    schedule: optax.Schedule | None = None,
    keep_steps: Sequence[int] = (),
) -> None:
    """Trains the policy's network of a run on the stage's section.

    Args:
      stage: its section has dropout and, unless there is a schedule, the learning rate.
      start: returns the weights before the first step.
      batches: makes the grain dataset.
      steps: updates.
      held_out: batches to measure, by what to call them in the metrics.
      schedule: learning rate by update; see `Stage.train`.
      keep_steps: checkpoints to keep besides the last ones.
    """
    network = stage.run.policy_config
    loss = held_out_loss(LanguageModel(network))

    def measure(state: TrainState) -> dict[str, float]:
        return {f"{name}_loss": loss(state.params, part) for name, part in held_out.items() if part}

    stage.train(
        objectives.language_model_loss(LanguageModel(with_dropout(network, stage.config, stage.declaration.section))),
        start,
        batches,
        steps=steps,
        schedule=schedule,
        callbacks=Callbacks(evaluate=measure),
        keep_steps=keep_steps,
    )
