"""PPO's initial policy: a fresh fine-tuning of GPT with pretraining text mixed in (appendix C.3)."""

from __future__ import annotations

import functools

from instructjax.data import demonstrations
from instructjax.records import Demonstration, Text
from instructjax.stages import language_model
from instructjax.stages.stage import Stage, stage


@stage("ppo_init", after=("pretrain",), uses=("demonstrations", "text"))
def run(stage: Stage) -> None:
    """Fine-tunes GPT, not the SFT baseline, for `ppo_init.epochs`.

    A share `ppo_init.text_share` of the examples is pretraining text; an epoch is one pass over the demonstrations.
    """
    run, section = stage.run, stage.section
    records = run.records(Demonstration, "train")
    steps = max(1, round(section.epochs * len(records) / (section.batch_size * (1 - section.text_share))))
    stage.check_epochs(steps, records, section.batch_size * (1 - section.text_share))
    if section.text_share:
        text = run.documents("train")
        batches = functools.partial(
            demonstrations.mixed_batches,
            records,
            text,
            run.layout,
            text_share=section.text_share,
            text_mixture=run.mixture(Text),
        )
    else:
        batches = functools.partial(demonstrations.batches, records, run.layout)
    language_model.train(
        stage,
        lambda: run.load_start("pretrain", section.init_from),
        lambda: batches(
            steps=steps,
            prompt_weight=section.prompt_weight,
            mixture=run.mixture(Demonstration),
            **stage.batching(),
        ),
        steps=steps,
        held_out={"demonstration": run.validation_demonstrations(), "text": run.validation_text()},
    )
