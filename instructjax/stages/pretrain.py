"""GPT: a language model of the pretraining text (Brown et al. 2020)."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
from etils import epath

from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.models.transformer import LanguageModel
from instructjax.records import Text
from instructjax.stages import imported, language_model, prepare, workspace
from instructjax.training import optimizer, parallel


@workspace.timed("pretrain")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains WORKDIR/pretrain from random weights, or imports it; see configs/instructgpt.py for the keys."""
    if not config.pretrain.import_from:
        _train(config, workdir)
        return

    def measure(model: LanguageModel, params: Any, layout: Layout) -> dict[str, float]:
        return {"text_loss": language_model.mean_loss(model)(params, prepare.validation_text(config, workdir, layout))}

    imported.run("pretrain", config, workdir, LanguageModel, measure)


def _train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    section = config.pretrain
    key = jax.random.fold_in(workspace.root_key(config, "pretrain"), section.steps)
    language_model.train(
        "pretrain",
        config,
        workdir,
        layout,
        shape,
        lambda: workspace.initial_params(LanguageModel(shape), key),
        lambda: pipeline.text_batches(
            prepare.load(config, workdir, Text, "train"),
            layout.tokenizer,
            length=section.length,
            batch_size=section.batch_size,
            seed=config.seed,
            share=parallel.share_of_rows(),
        ),
        optimizer.cosine_schedule(section.learning_rate, section.steps, section.warmup_steps, section.final_fraction),
        steps=section.steps,
        validation={"text": prepare.validation_text(config, workdir, layout)},
    )
