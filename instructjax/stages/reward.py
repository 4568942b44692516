"""The reward model (section 3.5, appendix C.2)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from instructjax.batch import RankingBatch
from instructjax.data import pipeline
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.data.rankings import ranking_batches, tokenize_rankings
from instructjax.evaluation import reward_models
from instructjax.models.config import TransformerConfig
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.models.transformer import ScalarModel, graft_trunk
from instructjax.records import Demonstration, Ranking
from instructjax.reporting import curves
from instructjax.runs import loop
from instructjax.stages import imported, prepare, workspace
from instructjax.stages.workspace import Trained
from instructjax.training import objectives, optimizer, parallel
from instructjax.training import state as train_state
from instructjax.training.state import TrainState
from instructjax.training.step import train_step


@workspace.timed("reward")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains the SFT model with a scalar head on all pairs of each ranking, into WORKDIR/reward.

    After the last step the head's bias is set so that the training demonstrations score
    0 on average: "before RL" in section 3.5. A reward model that is imported keeps its scores.
    """
    if not config.reward.import_from:
        _train(config, workdir)
        return

    def measure(model: ScalarModel, params: Any, layout: Layout) -> dict[str, float]:
        return _evaluation(model, prepare.validation_rankings(config, workdir, layout))(params)

    imported.run("reward", config, workdir, ScalarModel, measure)


def _train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    layout = prepare.run(config, workdir)
    shape = workspace.reward_config(config, layout.tokenizer)
    section = config.reward
    records = prepare.load(config, workdir, Ranking, "train")
    rankings = tokenize_rankings(records, layout)
    steps = pipeline.steps(rankings, section.batch_size, section.epochs)
    directory = workspace.begin(config, workdir, "reward")
    start = workspace.checkpoints_of(section.init_from, workdir, "sft")
    root = workspace.root_key(config, "reward")
    scalar = ScalarModel(shape)
    params = graft_trunk(
        workspace.initial_params(scalar, jax.random.fold_in(root, steps)),
        workspace.load_language_model(start, shape, layout.tokenizer).params,
    )
    step, adam = make_step(config, shape, steps)
    evaluation = _evaluation(scalar, prepare.validation_rankings(config, workdir, layout))

    def offset(state: TrainState) -> TrainState:
        demonstrations = prepare.load(config, workdir, Demonstration, "train")
        reward = Trained(scalar, state.params, layout.tokenizer)
        mean = mean_score(reward, demonstrations, layout, config.evaluate.batch_size)
        bias = state.params["head"]["bias"]
        head = {**state.params["head"], "bias": (bias - mean).astype(bias.dtype)}
        return state.replace(params={**state.params, "head": head})

    loop.run(
        "reward",
        parallel.compile_step(step, config.parallel),
        parallel.build(
            functools.partial(train_state.create, optimizer=adam),
            params,
            shard_optimizer_state=config.parallel.shard_optimizer_state,
        ),
        lambda: ranking_batches(
            rankings,
            layout.tokenizer.pad_id,
            batch_size=section.batch_size,
            seed=config.seed,
            steps=steps,
            multiple=parallel.rows_multiple(config.parallel, section.microbatches),
            share=parallel.share_of_rows(),
        ),
        root,
        steps=steps,
        directory=directory,
        meta=workspace.describe(config, shape, layout.tokenizer),
        log=config.log,
        evaluate=lambda state: evaluation(state.params),
        finish=offset,
        judge=workspace.judge(config),
        draw=functools.partial(curves.update, directory),
    )


def make_step(
    config: ml_collections.ConfigDict, shape: TransformerConfig, steps: int
) -> tuple[Callable, optax.GradientTransformation]:
    """The pure step of the stage, and its optimiser.

    Args:
      config: a whole recipe.
      shape: the model, without dropout; the section's is added.
      steps: updates in all, for the learning rate.
    """
    section = config.reward
    schedule = optimizer.cosine_schedule(section.learning_rate, steps, final_fraction=section.final_fraction)
    adam = optimizer.adam(config.optimizer, schedule, section.weight_decay)
    step = train_step(
        objectives.ranking_loss(ScalarModel(dataclasses.replace(shape, dropout=section.dropout))),
        adam,
        microbatches=section.microbatches,
        axis_name=parallel.axis_name(config.parallel.mode),
    )
    return step, adam


def _evaluation(model: ScalarModel, batches: Sequence[RankingBatch]) -> Callable[[Any], dict[str, float]]:
    """`evaluation(params)`: loss and accuracy on held-out rankings."""
    loss = objectives.ranking_loss(model)
    measure = jax.jit(lambda params, batch: replicate(loss(params, constrain_rows(batch), None)))

    def evaluation(params: Any) -> dict[str, float]:
        window = [jax.device_get(measure(params, batch)) for batch in batches]
        values = loop.reduce([{"loss": pair, "accuracy": metrics["accuracy"]} for pair, metrics in window])
        return {f"validation_{name}": value for name, value in values.items()}

    return evaluation


def mean_score(reward: Trained, demonstrations: Sequence[Demonstration], layout: Layout, batch_size: int) -> jax.Array:
    """The mean reward of demonstrations, a scalar; `batch_size` rows of them are computed at a time."""

    def alone(index: int) -> TokenizedRanking:
        record = demonstrations[index]
        return TokenizedRanking(
            layout.prompt(record.prompt, record.where), [layout.response(record.response, record.where)]
        )

    scores = reward_models.rewards(reward, pipeline.indices(demonstrations).map(alone), batch_size)
    return jnp.asarray(np.mean(scores), jnp.float32)
