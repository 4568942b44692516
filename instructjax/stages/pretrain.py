"""GPT: a language model of the pretraining text (Brown et al. 2020)."""

from __future__ import annotations

import jax
import ml_collections
from etils import epath

from instructjax.data import pipeline
from instructjax.models import huggingface, pretrained
from instructjax.models.transformer import LanguageModel
from instructjax.records import Text
from instructjax.stages import language_model, prepare, workspace
from instructjax.training import checkpoint, loop, metrics, optimizer


@workspace.timed("pretrain")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains WORKDIR/pretrain from random weights, or imports it; see configs/instructgpt.py for the keys."""
    if config.pretrain.import_from:
        _import(config, workdir)
    else:
        _train(config, workdir)


def _import(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Takes the weights of a GPT-2 that others trained, as if the stage had ended with them."""
    source = config.pretrain.import_from
    described, tensors = pretrained.read(source)
    found = huggingface.config_of(described, f"{source}/config.json")
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    huggingface.check_fit(found, shape, source)
    directory = workspace.begin(config, workdir, "pretrain")
    if workspace.is_finished(workdir, "pretrain"):
        return
    params = huggingface.params_of(tensors, shape, source)
    text = prepare.validation_text(config, workdir, layout)
    with metrics.MetricsWriter(directory) as writer:
        writer.write(0, {"text_loss": language_model.mean_loss(LanguageModel(shape))(params, text)})
    with checkpoint.Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, meta=workspace.describe(config, shape, layout.tokenizer))
    loop.write_json(directory / "summary.json", {"steps": 0, "imported": str(source)})


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
        pipeline.text_batches(
            prepare.load(config, workdir, Text, "train"),
            layout.tokenizer,
            length=section.length,
            batch_size=section.batch_size,
            seed=config.seed,
        ),
        optimizer.cosine_schedule(section.learning_rate, section.steps, section.warmup_steps, section.final_fraction),
        steps=section.steps,
        validation={"text": prepare.validation_text(config, workdir, layout)},
    )
