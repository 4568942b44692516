"""GPT: a language model of the pretraining text (Brown et al. 2020)."""

from __future__ import annotations

import jax

from instructjax.data import pipeline
from instructjax.evaluation.language_models import held_out_loss
from instructjax.models.transformer import LanguageModel
from instructjax.records import Text
from instructjax.stages import imported, language_model
from instructjax.stages.stage import Stage, stage
from instructjax.stages.trained import initial_params
from instructjax.training import optimizer, parallel
from instructjax.training.state import Params


@stage("pretrain", uses=("text",))
def run(stage: Stage) -> None:
    """Trains GPT from random weights, or imports it."""
    section = stage.section
    if section.import_from:
        imported.run(stage, LanguageModel, lambda model, params: _text_loss(stage, model, params))
        return
    model = LanguageModel(stage.run.policy_config)
    language_model.train(
        stage,
        lambda: initial_params(model, jax.random.fold_in(stage.key, section.steps)),
        lambda: pipeline.text_batches(
            stage.run.documents("train"),
            stage.run.layout.tokenizer,
            length=section.length,
            batch_size=section.batch_size,
            seed=stage.config.seed,
            share=parallel.share_of_rows(),
            mixture=stage.run.mixture(Text),
        ),
        steps=section.steps,
        held_out={"text": stage.run.validation_text()},
        schedule=optimizer.cosine_schedule(
            section.learning_rate, section.steps, section.warmup_steps, section.final_fraction
        ),
    )


def _text_loss(stage: Stage, model: LanguageModel, params: Params) -> dict[str, float]:
    text = stage.run.validation_text()
    return {"text_loss": held_out_loss(model)(params, text)} if text else {}
