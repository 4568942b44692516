"""The reward model (section 3.5, appendix C.2)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import files
from instructjax.data import pipeline
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.data.rankings import ranking_batches, tokenize_rankings
from instructjax.evaluation import reward_models
from instructjax.models.transformer import ScalarModel, graft_trunk
from instructjax.records import Demonstration, Ranking
from instructjax.runs import interruption, processes
from instructjax.runs.callbacks import Callbacks
from instructjax.stages import imported, ranking_report, selection, trained
from instructjax.stages.stage import Stage, stage
from instructjax.stages.trained import initial_params
from instructjax.stages.training_step import with_dropout
from instructjax.training import objectives
from instructjax.training.state import Params, TrainState


@stage("reward", after=("sft",), uses=("rankings", "demonstrations"), policy=None, also=("comparisons",))
def run(stage: Stage) -> None:
    """Trains the SFT model with a scalar head on all pairs of each ranking.

    After the last step the head's bias is set so that the training demonstrations, or the first
    `reward.offset_demonstrations` of them, score 0 on average: "before RL" in section 3.5. An imported reward model
    keeps its scores. With `reward.candidates` above 1, the last checkpoint holds the weights of the candidate with the
    lowest loss on validation rankings.

    At the end, `ranking_report.write` measures it on rankings of the test split, if there are any.
    """
    run, section = stage.run, stage.section
    if section.import_from:
        imported.run(
            stage,
            ScalarModel,
            lambda model, params: reward_models.held_out_metrics(model, run.validation_rankings())(params),
        )
        ranking_report.write(run)
        return
    rankings = tokenize_rankings(run.records(Ranking, "train"), run.layout)
    steps = stage.steps(rankings)
    model = ScalarModel(run.reward_config)
    measure = reward_models.held_out_metrics(model, run.validation_rankings())

    candidates = selection.candidates(stage.config, steps, "reward")
    if not run.is_finished(stage.name):
        ranking_report.path(run).unlink(missing_ok=True)

    def finish(state: TrainState) -> TrainState:
        best = _best(stage, model, state.params, candidates, measure)
        return state.replace(params=_centered(stage, model, best))

    stage.train(
        objectives.ranking_loss(ScalarModel(with_dropout(model.config, stage.config, stage.declaration.section))),
        lambda: _start(stage, model, steps),
        lambda: ranking_batches(
            rankings, run.layout.tokenizer.pad_id, steps=steps, mixture=run.mixture(Ranking), **stage.batching()
        ),
        steps=steps,
        network=model.config,
        callbacks=Callbacks(evaluate=lambda state: measure(state.params), finish=finish),
        keep_steps=candidates,
    )
    ranking_report.write(run)


def _start(stage: Stage, model: ScalarModel, steps: int) -> Params:
    """Returns the SFT model's weights below a fresh scalar head."""
    fresh = initial_params(model, jax.random.fold_in(stage.key, steps))
    return graft_trunk(fresh, stage.run.load_start("sft", stage.section.init_from, model.config))


def _best(
    stage: Stage,
    model: ScalarModel,
    last: Params,
    candidates: Sequence[int],
    measure: Callable[[Params], Mapping[str, float]],
) -> Params:
    """Returns the weights of the candidate with the lowest validation loss; with a single candidate, the last ones."""
    *earlier, end = candidates
    if not earlier:
        return last

    def load(step: int) -> Params:
        saved, tokenizer = stage.directory / "checkpoints", stage.run.layout.tokenizer
        return trained.load_reward_model(saved, model.config, tokenizer, step=step, adapters=stage.run.lora).params

    losses = {step: measure(load(step))["validation_loss"] for step in earlier}
    losses[end] = measure(last)["validation_loss"]
    best = min(losses, key=lambda step: losses[step])
    noted = {"step": best, "candidates": {str(step): loss for step, loss in losses.items()}}
    processes.first(lambda: files.write_json(stage.directory / "candidates.json", noted))
    return last if best == end else load(best)


def _centered(stage: Stage, model: ScalarModel, params: Params) -> Params:
    """Subtracts the mean score of the training demonstrations, if there are any, from the head's bias."""
    if not stage.run.has(Demonstration):
        print("reward: there are no demonstrations, so their mean score is not subtracted")
        return params
    demonstrations = stage.run.records(Demonstration, "train")[: stage.section.offset_demonstrations or None]
    mean = mean_score(model, params, demonstrations, stage.run.layout, stage.config.evaluate.batch_size)
    bias = params["head"]["bias"]
    return {**params, "head": {**params["head"], "bias": (bias - mean).astype(bias.dtype)}}


def mean_score(
    model: ScalarModel, params: Params, demonstrations: Sequence[Demonstration], layout: Layout, batch_size: int
) -> jax.Array:
    """Returns the mean reward of demonstrations, a scalar; `batch_size` rows of them are computed at a time."""

    def alone(index: int) -> TokenizedRanking:
        record = demonstrations[index]
        return TokenizedRanking(
            layout.encode_prompt(record.prompt, record.where), [layout.encode_response(record.response, record.where)]
        )

    rows = pipeline.indices(demonstrations).map(alone)
    over = functools.partial(interruption.stoppable, place="reward")
    scores = reward_models.rewards(
        model, params, rows, pad_id=layout.tokenizer.pad_id, batch_size=batch_size, over=over
    )
    return jnp.asarray(np.mean(scores), jnp.float32)
