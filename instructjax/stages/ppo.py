"""The stages ppo (gamma = 0) and ppo_ptx, from the initial policy and the reward model (appendix C.4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

from instructjax.algorithms.ppo import Frozen, Iteration, PPOState, make_iteration
from instructjax.data import pipeline
from instructjax.data.layouts import Layout
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt, Text
from instructjax.reporting import curves
from instructjax.rollout import reward_function, samplers
from instructjax.rollout.reward_function import RewardFunction
from instructjax.runs import loop
from instructjax.sandbox.quality import quality
from instructjax.stages import language_model, prepare, workspace
from instructjax.training import optimizer, parallel
from instructjax.training import state as train_state
from instructjax.training.state import Params

Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]  # of the policy and the value network


@workspace.timed("ppo")
def run_ppo(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """PPO without pretraining text, into WORKDIR/ppo."""
    _run("ppo", config, workdir)


@workspace.timed("ppo_ptx")
def run_ppo_ptx(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """PPO with the ptx term, the paper's InstructGPT, into WORKDIR/ppo_ptx."""
    _run("ppo_ptx", config, workdir)


def _run(stage: str, config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    section = config.ppo
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    scalar_shape = workspace.reward_config(config, layout.tokenizer)
    policy_model, scalar_model = LanguageModel(shape), ScalarModel(scalar_shape)
    name = section.reward_function
    reward_model = RewardFunction(reward_function.load(name), layout) if name else scalar_model
    directory = workspace.begin(config, workdir, stage)
    start = workspace.checkpoints_of(section.init_from, workdir, "ppo_init")
    initial = workspace.load_language_model(start, shape, layout.tokenizer).params
    start = workspace.checkpoints_of(section.reward_from, workdir, "reward")
    reward = workspace.load_reward_model(start, scalar_shape, layout.tokenizer).params

    eos_id, pad_id = layout.tokenizer.eos_id, layout.tokenizer.pad_id
    iterate, adams = make_programs(config, policy_model, scalar_model, reward_model, eos_id=eos_id, pad_id=pad_id)

    def begin(*weights: Params) -> PPOState:
        # A copy: steps donate the state, and keep the frozen weights.
        return initial_state(*jax.tree.map(jnp.copy, weights), adams)

    state = parallel.build(begin, initial, reward, shard_optimizer_state=config.parallel.shard_optimizer_state)
    frozen = parallel.build(functools.partial(freeze, dtype=section.frozen_dtype or shape.param_dtype), initial, reward)
    del initial, reward  # on a mesh, or in another type, the frozen weights are others
    loop.run(
        stage,
        parallel.compile_step(iterate, config.parallel),
        state,
        lambda: _batches(stage, config, workdir, layout),
        workspace.root_key(config, stage),
        steps=section.iterations,
        directory=directory,
        meta=workspace.describe(config, shape, layout.tokenizer),
        log=config.ppo_log,
        constants=(frozen,),
        evaluate=_measure(config, workdir, layout, shape, reward_model, frozen),
        judge=workspace.judge(config),
        draw=functools.partial(curves.update, directory),
    )


def _batches(
    stage: str, config: ml_collections.ConfigDict, workdir: epath.PathLike, layout: Layout
) -> pipeline.Batches:
    """Prompts, with pretraining text in the stage ppo_ptx."""
    section, share = config.ppo, parallel.share_of_rows()
    prompts = pipeline.shuffled_batches(
        pipeline.prompt_rows(prepare.load(config, workdir, Prompt, "train"), layout),
        batch_size=section.batch_size,
        seed=config.seed,
        share=share,
    )
    if stage == "ppo":
        return prompts.map(lambda batch: (batch, None))
    text = pipeline.text_batches(
        prepare.load(config, workdir, Text, "train"),
        layout.tokenizer,
        length=section.ptx_length,
        batch_size=section.batch_size * section.ptx_examples_per_episode,
        seed=config.seed + 1,  # another order than pretraining's
        share=share,
    )
    return pipeline.zip_batches(prompts, text)


def make_programs(
    config: ml_collections.ConfigDict,
    policy_model: LanguageModel,
    scalar_model: ScalarModel,
    reward_model: ScalarModel | RewardFunction,
    *,
    eos_id: int,
    pad_id: int,
) -> tuple[Iteration, Optimizers]:
    """An iteration of a recipe, and the optimisers of the policy and of the value network.

    Args:
      config: a whole recipe.
      policy_model: of policy and reference.
      scalar_model: of the value.
      reward_model: scores episodes.
      eos_id: ends a response.
      pad_id: fills a row after its end.
    """
    section = config.ppo
    updates = section.epochs * (section.batch_size // section.minibatch_size)
    policy_adam, value_adam = (
        optimizer.adam(
            config.optimizer,
            optimizer.constant_schedule(rate, section.warmup_iterations * updates),
            section.weight_decay,
        )
        for rate in (section.learning_rate, section.value_learning_rate)
    )
    iterate = make_iteration(
        policy_model,
        scalar_model,
        policy_adam,
        value_adam,
        section,
        reward_model=reward_model,
        max_response=config.data.max_response,
        eos_id=eos_id,
        pad_id=pad_id,
        axis_name=parallel.axis_name(config.parallel.mode),
    )
    return iterate, (policy_adam, value_adam)


def freeze(reference: Params, reward: Params, dtype: str) -> Frozen:
    """The weights that an iteration reads only, in the type that they are held in; the head keeps its own."""

    def held(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        return x if path[0] == jax.tree_util.DictKey("head") else x.astype(dtype)

    return Frozen(*(jax.tree_util.tree_map_with_path(held, params) for params in (reference, reward)))


def initial_state(policy: Params, value: Params, optimizers: Optimizers) -> PPOState:
    """The state before the first iteration, from weights that it takes over."""
    return PPOState(
        step=jnp.zeros((), jnp.int32),
        policy=train_state.create_averaged(policy, optimizers[0]),
        value=train_state.create(value, optimizers[1]),
    )


def _measure(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    layout: Layout,
    shape: TransformerConfig,
    reward_model: ScalarModel | RewardFunction,
    frozen: Frozen,
) -> Callable[[PPOState], dict[str, float]]:
    """Reward, KL, true quality and loss on text of the averaged policy, on validation prompts."""
    model = LanguageModel(shape)
    sampler = samplers.make_sampler(
        model,
        layout,
        temperature=config.evaluate.temperature,
        batch_size=config.evaluate.batch_size,
    )
    scorer, divergence = samplers.make_scorer(reward_model), samplers.make_divergence(model)
    text_loss = language_model.mean_loss(model)
    records = prepare.load(config, workdir, Prompt, "validation")
    prompts = [record.prompt for record in records[: config.evaluate.batch_size]]
    text = prepare.validation_text(config, workdir, layout)
    key = jax.random.key(config.seed)

    def measure(state: PPOState) -> dict[str, float]:
        params: Any = state.policy.ema
        ((episodes, texts),) = sampler(params, prompts, key)
        size = len(texts)
        values = {
            "validation_reward": float(np.mean(scorer(frozen.reward, episodes)[:size])),
            "validation_kl": float(np.mean(divergence(params, frozen.reference, episodes)[:size])),
            "text_loss": text_loss(params, text),
        }
        if "sandbox" in config:
            values["true_quality"] = float(np.mean([quality(p, a) for p, a in zip(prompts, texts, strict=True)]))
        return values

    return measure
