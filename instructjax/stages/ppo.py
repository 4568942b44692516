"""The stages ppo (gamma = 0) and ppo_ptx, from the initial policy and the reward model (appendix C.4).

Rewards come from the reward model, or from a function of texts; then no reward model is needed. Advantages come from a
value network (PPO), or from several responses to a prompt (RLOO, GRPO).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax.algorithms import advantages
from instructjax.algorithms.advantages import Estimator
from instructjax.algorithms.ppo import Frozen, Iteration, Learner, PPOState, make_iteration
from instructjax.batch import PromptBatch, count_tokens
from instructjax.data import pipeline
from instructjax.errors import ConfigError
from instructjax.models import flops, lora
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.recipe import check
from instructjax.records import Prompt, Text
from instructjax.rollout import reward_function
from instructjax.runs import best
from instructjax.runs.callbacks import Callbacks
from instructjax.runs.schedule import Schedule
from instructjax.runs.speed import Flops, Matmuls
from instructjax.stages import ppo_validation, ppo_weights, scoring
from instructjax.stages.stage import Stage, stage
from instructjax.training import optimizer, parallel
from instructjax.training import state as train_state
from instructjax.training.metrics import Metrics
from instructjax.training.state import Params
from instructjax.typing import TokenIds

_AFTER = ("ppo_init", "reward")
# The learning rates do not depend on `iterations`, so a finished run can be continued with more.
MAY_CHANGE = (
    "iterations",
    "reward_retries",
    "reward_retry_seconds",
    "reward_timeout_seconds",
    "validation_prompts",
    "shown_answers",
)


@stage("ppo", after=_AFTER, uses=("prompts",), policy="policy/ema", may_change=MAY_CHANGE)
def run(stage: Stage) -> None:
    """Trains PPO without pretraining text."""
    train(stage, prompt_batches(stage), advantages.named(stage.section))


@stage(
    "ppo_ptx",
    after=_AFTER,
    uses=("prompts", "text"),
    policy="policy/ema",
    section="ppo",
    may_change=MAY_CHANGE,
)
def run_with_text(stage: Stage) -> None:
    """Trains PPO with the ptx term: the paper's InstructGPT."""
    train(stage, lambda: pipeline.zip_batches(_prompts(stage), _text(stage)), advantages.named(stage.section))


def train(stage: Stage, batches: Callable[[], pipeline.Batches], estimator: Estimator) -> None:
    """Trains the initial policy against the reward model, or against the section's reward function.

    Args:
      stage: its section is `ppo`, or has the same keys.
      batches: makes the grain dataset of pairs of prompts, as in `prompt_batches`, and an `LMBatch` or None.
      estimator: of advantages. If it needs a critic, a value network is trained too: from the reward model's weights,
        or if there is none, from the policy's below a fresh head.
    """
    run, section = stage.run, stage.section
    check.ppo_section(stage.config, stage.declaration.section)
    if section.samples_per_prompt < 1 + estimator.needs_groups:
        raise ConfigError(
            f"{stage.declaration.section}.samples_per_prompt: expected at least 2 for this estimator of advantages, "
            f"found {section.samples_per_prompt}"
        )
    score = _make_score(stage)
    policy = LanguageModel(run.policy_config)
    scalar = ScalarModel(run.reward_config if ppo_weights.uses_reward_model(section) else run.policy_config)
    start = ppo_weights.load(stage, policy.config, scalar.config, needs_critic=estimator.needs_critic)
    learners = make_learners(stage.config, section, policy, scalar if estimator.needs_critic else None)
    layout = run.layout
    iterate = make_programs(
        stage.config, section, learners, scalar, estimator, eos_id=layout.eos_ids, pad_id=layout.tokenizer.pad_id
    )
    dtype = section.frozen_dtype or policy.config.param_dtype
    # Not compiled: a compiled function would copy weights that have this type already.
    frozen, bases = freeze(start.policy, start.reward, start.bases, dtype)
    prepare = None
    if score is not None:
        records = run.records(Prompt, "train")
        parallelism = stage.config.parallel
        prepare = scoring.rollout_and_score(stage.name, iterate, score, records, layout, parallelism, bases)

    def begin(initial: Params, value: Params | None) -> PPOState:
        # A copy: steps donate the state, and keep the frozen weights.
        initial, value = jax.tree.map(jnp.copy, (initial, value))
        return initial_state(initial, value, learners, section)

    shard_optimizer_state = stage.config.parallel.shard_optimizer_state
    state = parallel.build(begin, start.policy, start.value, shard_optimizer_state=shard_optimizer_state)
    base = start.base
    del start  # in another type, the frozen weights are others
    measure = ppo_validation.make_measure(stage, policy, scalar, score, ppo_weights.attached(frozen, bases))

    def step(state: PPOState, batch: Any, key: jax.Array, frozen: Frozen, *bases: Params) -> tuple[PPOState, Metrics]:
        on_bases = iterate.on(bases)
        return (on_bases.learn if prepare else on_bases.step)(state, batch, key, frozen)

    stage.train_with(
        step,
        state,
        batches,
        schedule=Schedule.from_config(
            stage.config.ppo_log,
            steps=section.iterations,
            section="ppo_log",
            key=f"{stage.declaration.section}.iterations",
        ),
        constants=(frozen, *bases),
        matmuls=_matmuls(stage, scalar.config, uses_scorer=score is None, needs_critic=estimator.needs_critic),
        callbacks=Callbacks(
            prepare=prepare,
            evaluate=lambda state: measure(ppo_weights.with_whole_average(state, bases)),
            best=best.METRICS[0],
        ),
        base=base,
    )


def _matmuls(stage: Stage, scalar: TransformerConfig, *, uses_scorer: bool, needs_critic: bool) -> Matmuls:
    """Returns how the matmuls of an iteration are counted, in which all responses have the mean length of the line."""
    policy, section, adapters = stage.run.policy_config, stage.section, stage.lora

    def count(batch: tuple[Any, Any], step: int) -> Flops:
        given, text = batch
        prompts = given if isinstance(given, PromptBatch) else given[0]
        epochs = 0 if step <= section.value_warmup_iterations else section.epochs
        learned = epochs * flops.training_flops(policy, text, logits=True, adapters=adapters)
        rows, tokens = len(prompts.tokens), count_tokens(prompts)

        def iteration(metrics: Mapping[str, float]) -> float:
            return learned + flops.iteration_flops(
                policy,
                scalar if uses_scorer else None,
                scalar if needs_critic else None,
                rows=rows * section.samples_per_prompt,
                prompt=tokens / rows,
                response=metrics["response_tokens"],
                epochs=epochs,
                critic_epochs=section.epochs,
                samples=1 if section.rollout_refill else section.samples_per_prompt,
                adapters=adapters,
            )

        return iteration

    return Matmuls(count, policy.resolved_matmul_dtype)


def _make_score(stage: Stage) -> scoring.Score | None:
    """Returns the section's reward function, which has been tried out; None for the reward model."""
    run, section, name = stage.run, stage.declaration.section, stage.section.reward_function
    if not name:
        return None
    if section != "ppo":  # that of PPO was tried out when the records were prepared
        scoring.try_out(stage.config, section, run.records(Prompt, "train"))
    return scoring.make_score(reward_function.load(name, f"{section}.reward_function"), stage.section)


def prompt_batches(stage: Stage) -> Callable[[], pipeline.Batches]:
    """Returns a function that makes batches of prompts without pretraining text.

    The prompts are a `PromptBatch`. With a reward function they are a pair of it and the indices of their records.
    """
    return lambda: _prompts(stage).map(lambda batch: (batch, None))


def _prompts(stage: Stage) -> pipeline.Batches:
    records = stage.run.records(Prompt, "train")
    rows = pipeline.prompt_rows(records, stage.run.layout)
    if stage.section.reward_function:
        rows = pipeline.numbered(rows)
    return pipeline.shuffled_batches(
        rows,
        batch_size=stage.section.batch_size // stage.section.samples_per_prompt,
        seed=stage.config.seed,
        share=parallel.share_of_rows(),
        mixture=stage.run.mixture(Prompt),
    )


def _text(stage: Stage) -> pipeline.Batches:
    section = stage.section
    return pipeline.text_batches(
        stage.run.documents("train"),
        stage.run.layout.tokenizer,
        length=section.ptx_length,
        batch_size=section.batch_size * section.ptx_examples_per_episode,
        seed=stage.config.seed + 1,  # another order than pretraining's
        share=parallel.share_of_rows(),
        mixture=stage.run.mixture(Text),
    )


def make_learners(
    config: ml_collections.ConfigDict,
    section: ml_collections.ConfigDict,
    policy: LanguageModel,
    critic: ScalarModel | None,
) -> tuple[Learner, Learner | None]:
    """Returns the policy and the value network, if there is one, each with its optimizer.

    The policy decodes in the section's `rollout_dtype`.

    Args:
      config: a whole recipe.
      section: its section `ppo`, or one with the same keys.
      policy: the policy's network.
      critic: the value network.
    """
    updates = section.epochs * (section.batch_size // section.minibatch_size)

    def learner(model: LanguageModel | ScalarModel, rate: float) -> Learner:
        schedule = optimizer.constant_schedule(rate, section.warmup_iterations * updates)
        return Learner(model, optimizer.adam(config.optimizer, schedule, section.weight_decay))

    value = None if critic is None else learner(critic, section.value_learning_rate)
    policy = LanguageModel(dataclasses.replace(policy.config, decoding_dtype=section.rollout_dtype))
    return learner(policy, section.learning_rate), value


def make_programs(
    config: ml_collections.ConfigDict,
    section: ml_collections.ConfigDict,
    learners: tuple[Learner, Learner | None],
    scorer: ScalarModel,
    estimator: Estimator,
    *,
    eos_id: TokenIds,
    pad_id: int,
) -> Iteration:
    """Returns the iteration of a recipe.

    Args:
      config: a whole recipe.
      section: its section `ppo`, or one with the same keys.
      learners: see `make_learners`.
      scorer: the reward model.
      estimator: of advantages.
      eos_id: ends a response.
      pad_id: fills a row after its end.
    """
    policy, critic = learners
    return make_iteration(
        policy,
        scorer,
        critic,
        estimator,
        section,
        max_response=config.data.max_response,
        eos_id=eos_id,
        pad_id=pad_id,
        samples_per_prompt=section.samples_per_prompt,
        axis_name=parallel.axis_name(config.parallel.mode),
    )


def freeze(
    reference: Params, reward: Params | None, bases: tuple[Params, ...], dtype: str
) -> tuple[Frozen, tuple[Params, ...]]:
    """Returns the weights that an iteration only reads, in the type that they are held in.

    Heads and adapters keep their own. Weights that have the type already are not copied.

    Args:
      reference: of the initial policy.
      reward: of the reward model; None if a function gives the rewards.
      bases: see `ppo_weights.Start`.
      dtype: of the weights.
    """

    def held(params: Params) -> Params:
        base, learned = lora.split(params)
        return lora.attach(jax.tree.map(lambda x: x.astype(dtype), base), learned)

    return Frozen(held(reference), None if reward is None else held(reward)), tuple(held(base) for base in bases)


def initial_state(
    policy: Params, value: Params | None, learners: tuple[Learner, Learner | None], section: ml_collections.ConfigDict
) -> PPOState:
    """Returns the state before the first iteration, from weights that it takes over."""
    actor, critic = learners
    return PPOState(
        step=jnp.zeros((), jnp.int32),
        policy=train_state.create_averaged(policy, actor.optimizer),
        value=None if critic is None else train_state.create(value, critic.optimizer),
        kl_coefficient=jnp.float32(section.kl_coefficient) if section.kl_target else None,
    )
