"""DPO (Rafailov et al. 2023), a guest of the paper's rooms: a policy from rankings alone, in WORKDIR/dpo.

Needs WORKDIR/sft, its start and reference; where labelers are simulated, their rankings are collected first.
"""

import functools

import command_line
import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.data import pipeline
from instructjax.data.rankings import ranking_batches, tokenize_rankings
from instructjax.errors import ConfigError
from instructjax.models.transformer import LanguageModel
from instructjax.records import Ranking
from instructjax.runs import loop
from instructjax.stages import comparisons, prepare, workspace
from instructjax.training import objectives, optimizer, parallel, state, step


def implicit_rewards(model, params, reference, batch, beta):
    """Equation 5: beta log(pi(y|x) / pi_ref(y|x)), [B, S, K]."""
    log_prob = functools.partial(objectives.answer_log_probs, model, batch=batch)
    return beta * (log_prob(params) - log_prob(reference))


def dpo_loss(params, batch, key, *, model, reference, beta):
    """Equation 7 on all pairs of a prompt: InstructGPT's ranking loss, of the implicit rewards."""
    rewards = implicit_rewards(model, params, reference, batch, beta)
    by_prompt = objectives.by_prompt(rewards, batch.scores, batch.valid)
    return losses.ranking_loss(*by_prompt), {"accuracy": losses.ranking_accuracy(*by_prompt)}


@workspace.timed("dpo")
def run(config, workdir):
    """Trains WORKDIR/dpo on the rankings, with the config's section of that name."""
    layout, section = prepare.run(config, workdir), config.dpo
    parallel.check_batch_size(section.batch_size, "dpo.batch_size", config.parallel, section.microbatches)
    shape, axis = workspace.model_config(config, layout.tokenizer), parallel.axis_name(config.parallel.mode)
    start = workspace.checkpoints_of(section.init_from, workdir, "sft")
    reference = workspace.load_language_model(start, shape, layout.tokenizer).params
    records = prepare.load(config, workdir, Ranking, "train")
    rankings = tokenize_rankings(records, layout)
    steps = pipeline.steps(rankings, section.batch_size, section.epochs)
    schedule = optimizer.cosine_schedule(section.learning_rate, steps, final_fraction=section.final_fraction)
    adam = optimizer.adam(config.optimizer, schedule, section.weight_decay)

    def update(train_state, batch, key, reference):
        loss = functools.partial(dpo_loss, model=LanguageModel(shape), reference=reference, beta=section.beta)
        return step.train_step(loss, adam, microbatches=section.microbatches, axis_name=axis)(train_state, batch, key)

    loop.run(
        "dpo",
        parallel.compile_step(update, config.parallel),
        parallel.build(
            lambda start: state.create(jax.tree.map(jnp.copy, start), adam),
            reference,
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
        jax.random.key(config.seed),
        steps=steps,
        directory=workspace.begin(config, workdir, "dpo"),
        meta=workspace.describe(config, shape, layout.tokenizer),
        log=config.log,
        constants=(reference,),
        judge=workspace.judge(config),
    )


def main(config, workdir):
    """Comparisons, where there are none, and DPO."""
    if "dpo" not in config:
        raise ConfigError("dpo: expected a section of the recipe, as configs/dpo.py has it, found none")
    comparisons.run(config, workdir)
    run(config, workdir)


if __name__ == "__main__":
    command_line.run(main)
