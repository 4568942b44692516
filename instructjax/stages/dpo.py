"""DPO (Rafailov et al. 2023), a guest: a policy from rankings alone, without a reward model and without sampling."""

from __future__ import annotations

import functools

from instructjax.algorithms.dpo import dpo_loss
from instructjax.data.rankings import ranking_batches, tokenize_rankings
from instructjax.models.transformer import LanguageModel
from instructjax.records import Ranking
from instructjax.stages.stage import Stage, stage


@stage("dpo", after=("sft",), uses=("rankings",))
def run(stage: Stage) -> None:
    """Trains the SFT policy on the rankings, with itself as the reference."""
    run, section, batching = stage.run, stage.section, stage.batching()
    reference = run.load_start("sft", section.init_from)
    rankings = tokenize_rankings(run.records(Ranking, "train"), run.layout)
    steps = stage.steps(rankings)
    stage.train(
        functools.partial(dpo_loss, model=LanguageModel(run.policy_config), beta=section.beta),
        start=lambda: reference,
        batches=lambda: ranking_batches(
            rankings, run.layout.tokenizer.pad_id, steps=steps, mixture=run.mixture(Ranking), **batching
        ),
        steps=steps,
        frozen=(reference,),
    )
