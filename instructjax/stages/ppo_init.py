"""PPO's initial policy: a fresh fine-tuning of GPT with pretraining text mixed in (appendix C.3)."""

from __future__ import annotations

import functools

import ml_collections
from etils import epath

from instructjax.data import demonstrations
from instructjax.records import Demonstration, Text
from instructjax.stages import language_model, prepare, workspace
from instructjax.training import optimizer, parallel


@workspace.timed("ppo_init")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Fine-tunes GPT, not the SFT baseline, for `ppo_init.epochs`, into WORKDIR/ppo_init.

    A share `ppo_init.text_share` of the examples is pretraining text; an epoch is one
    pass over the demonstrations.
    """
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    section = config.ppo_init
    records = prepare.load(config, workdir, Demonstration, "train")
    steps = max(1, round(section.epochs * len(records) / (section.batch_size * (1 - section.text_share))))
    if section.text_share:
        text = prepare.load(config, workdir, Text, "train")
        batches = functools.partial(demonstrations.mixed_batches, records, text, layout, text_share=section.text_share)
    else:
        batches = functools.partial(demonstrations.batches, records, layout)
    start = workspace.checkpoints_of(section.init_from, workdir, "pretrain")
    language_model.train(
        "ppo_init",
        config,
        workdir,
        layout,
        shape,
        lambda: workspace.load_language_model(start, shape, layout.tokenizer).params,
        lambda: batches(
            batch_size=section.batch_size,
            seed=config.seed,
            steps=steps,
            prompt_weight=section.prompt_weight,
            multiple=parallel.rows_multiple(config.parallel, section.microbatches),
            share=parallel.share_of_rows(),
        ),
        optimizer.cosine_schedule(section.learning_rate, steps, final_fraction=section.final_fraction),
        steps=steps,
        validation={
            "demonstration": prepare.validation_demonstrations(config, workdir, layout),
            "text": prepare.validation_text(config, workdir, layout),
        },
    )
