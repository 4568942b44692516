"""Builds an iteration of PPO, or one of its parts, as its stage does, with shapes instead of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax.algorithms import advantages
from instructjax.algorithms.ppo import Iteration, Learner, PPOState
from instructjax.batch import PromptBatch
from instructjax.models import flops
from instructjax.models.config import TransformerConfig
from instructjax.models.flops import Work
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.planning import shapes
from instructjax.stages import ppo, ppo_weights
from instructjax.stages.adapter_base import lora_config

EOS, PAD = 1, 0  # no shape depends on these ids
PARTS = ("rollout", "scoring", "update", "iteration")


def build(name: str, config: ml_collections.ConfigDict, with_text: bool) -> shapes.Program:
    """Builds an iteration or one of its three parts.

    Each part holds all weights and optimizer state of an iteration.

    Args:
      name: ends in one of PARTS.
      config: a whole recipe.
      with_text: whether updates also read pretraining text, as in PPO-ptx.
    """
    section, data, adapters = config.ppo, config.data, lora_config(config)
    shape, scalar_shape = shapes.model_configs(config)
    policy, scalar = LanguageModel(shape), ScalarModel(scalar_shape)
    estimator, by_function = advantages.named(section), bool(section.reward_function)
    learners = ppo.make_learners(config, section, policy, scalar if estimator.needs_critic else None)
    iteration = ppo.make_programs(config, section, learners, scalar, estimator, eos_id=EOS, pad_id=PAD)
    functions = _functions(iteration, by_function)
    state, constants = _weights(config, learners, (policy, scalar))
    tokens = shapes.array((section.batch_size // section.samples_per_prompt, data.max_prompt), jnp.int32)
    prompts = PromptBatch(tokens, tokens)
    minibatches = section.batch_size // section.minibatch_size
    windows = section.ptx_examples_per_episode * section.minibatch_size
    text = shapes.lm_batch(windows * minibatches, section.ptx_length) if with_text else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    scores = shapes.array((section.batch_size,), jnp.float32) if by_function else None

    episodes = jax.eval_shape(functions["rollout"], state, prompts, key, *constants)
    experience, _ = jax.eval_shape(functions["scoring"], state, (episodes, scores), key, *constants)
    rollout, scoring, update = _phases(config, with_text)
    part = name.rpartition(" ")[2]
    parts: dict[str, tuple[shapes.Tree, dict[str, Work]]] = {
        "rollout": (prompts, rollout),
        "scoring": ((episodes, scores), scoring),
        "update": (
            (
                _first_rows(experience, section.minibatch_size),
                shapes.lm_batch(windows, section.ptx_length) if with_text else None,
            ),
            update,
        ),
        "iteration": (
            (episodes, scores, text) if by_function else (prompts, text),
            {
                **({} if by_function else rollout),  # then rollout and learning are two programs
                **scoring,
                **{f"{minibatches * section.epochs} updates": section.epochs * minibatches * _total(update)},
                "average": Work(0.0, 0.0, 3 * 4 * flops.learned_parameters(shape, adapters)),
            },
        ),
    }
    batch, phases = parts[part]
    return shapes.Program(
        name=name,
        function=functions[part],
        state=state,
        batch=batch,
        constants=constants,
        donated=part in ("update", "iteration"),
        phases=phases,
        rows=_rows(section, with_text),
        cache=_cache(config, shape) if part == "rollout" or part == "iteration" and not by_function else 0.0,
        trips=_trips(section, data.max_response),
    )


def _functions(iteration: Iteration, by_function: bool) -> dict[str, Callable[..., Any]]:
    """Returns each of `PARTS` as a function of a state, a batch, a key, the frozen weights and the bases."""

    def rollout(state: PPOState, prompts: PromptBatch, key: Any, _: Any, *bases: shapes.Tree) -> Any:
        return iteration.on(bases).rollout(state.policy.params, prompts, key)[0]

    def observe(state: PPOState, batch: Any, _: Any, frozen: Any, *bases: shapes.Tree) -> Any:
        return iteration.on(bases).observe(state, frozen, *batch)

    def update(state: PPOState, batch: Any, _: Any, __: Any, *bases: shapes.Tree) -> Any:
        return iteration.on(bases).update(state, *batch)

    def step(state: PPOState, batch: Any, key: Any, frozen: Any, *bases: shapes.Tree) -> Any:
        on_bases = iteration.on(bases)
        return (on_bases.learn if by_function else on_bases.step)(state, batch, key, frozen)

    return dict(zip(PARTS, (rollout, observe, update, step), strict=True))


def _weights(
    config: ml_collections.ConfigDict,
    learners: tuple[Learner, Learner | None],
    models: tuple[LanguageModel, ScalarModel],
) -> tuple[PPOState, tuple[shapes.Tree, ...]]:
    """Returns the state of an iteration, and the weights that it only reads: the frozen ones and the bases."""
    section, adapters = config.ppo, lora_config(config)
    (base, learned), (scalar_base, scalar_learned) = (shapes.learned(model, adapters) for model in models)
    state = jax.eval_shape(
        lambda policy, value: ppo.initial_state(policy, value, learners, section), learned, scalar_learned
    )
    one_base = config.lora.one_base or not ppo_weights.uses_reward_model(section)
    both = base if one_base else (*base, *scalar_base)
    freeze = functools.partial(ppo.freeze, dtype=section.frozen_dtype or models[0].config.param_dtype)
    frozen, bases = jax.eval_shape(freeze, learned, None if section.reward_function else scalar_learned, both)
    return state, (frozen, *bases)


def _rows(section: ml_collections.ConfigDict, with_text: bool) -> dict[str, tuple[int, int]]:
    """Returns `Program.rows` of PPO, as `recipe.check` requires them."""
    parts, samples = section.rollout_parts, section.samples_per_prompt
    prompts = "ppo.batch_size / ppo.samples_per_prompt"
    rows = {"ppo.batch_size / ppo.rollout_parts": (section.batch_size, parts)}
    if section.rollout_refill:
        rows[prompts] = section.batch_size // samples, 1
    else:  # a part has whole groups
        rows[f"{prompts} / ppo.rollout_parts"] = section.batch_size // samples, parts
    rows["ppo.minibatch_size / ppo.microbatches"] = section.minibatch_size, section.microbatches
    if with_text:
        keys = "ppo.minibatch_size x ppo.ptx_examples_per_episode / ppo.ptx_microbatches"
        rows[keys] = section.ptx_examples_per_episode * section.minibatch_size, section.ptx_microbatches
    return rows


def refills(section: ml_collections.ConfigDict, devices: int) -> tuple[int, int]:
    """Simulates continuous batching on one device: (prefills, responses decoded one after the other).

    It follows `rollout.refilling.sample`, with every response at its full length. If
    `rollout_refill` does not divide the rows, some rows idle until others are done.

    Args:
      section: the recipe's section `ppo`, with `rollout_refill` above 0.
      devices: the number of devices over which the rows are divided.
    """
    left = section.batch_size // devices
    rows = max(left // section.rollout_parts, 1)  # 0 rows are reported by `plan.uneven_rows`
    refill, turns, rounds = min(section.rollout_refill, rows), 0, 0
    while left:
        done = rows
        while left and done >= min(refill, left):
            taken = min(refill, left)
            left, done, turns = left - taken, done - taken, turns + 1
        rounds += 1
    return turns, rounds


def _trips(section: ml_collections.ConfigDict, response: int) -> tuple[float, ...]:
    if not section.rollout_refill:
        return (response - 1,)
    turns, rounds = refills(section, 1)  # the program is traced without a mesh
    return turns, rounds * (response - 1) / turns


def _cache(config: ml_collections.ConfigDict, shape: TransformerConfig) -> float:
    """Computes the bytes of the keys and values of all rows, and of the prompts that refill idle rows."""
    section, data = config.ppo, config.data
    rows = section.batch_size // section.rollout_parts
    held = flops.cache_bytes(shape, rows, data.max_prompt + data.max_response)
    return held + flops.cache_bytes(shape, min(section.rollout_refill * shapes.devices(config), rows), data.max_prompt)


def _phases(config: ml_collections.ConfigDict, with_text: bool) -> tuple[dict[str, Work], ...]:
    section, data, adapters = config.ppo, config.data, lora_config(config)
    shape, scalar_shape = shapes.model_configs(config)
    rows, length = section.batch_size, data.max_prompt + data.max_response
    minibatches = rows // section.minibatch_size
    turns, rounds = (
        refills(section, shapes.devices(config)) if section.rollout_refill else (None, section.rollout_parts)
    )
    samples = 1 if section.rollout_refill else section.samples_per_prompt
    sampler = dataclasses.replace(shape, decoding_dtype=section.rollout_dtype)
    prefill, decode = flops.decode_work(sampler, rows, data.max_prompt, data.max_response, rounds, turns, samples)

    def forward(rows: int) -> tuple[float, float]:
        return (
            flops.forward_flops(shape, rows, length, data.max_response),
            flops.scalar_flops(scalar_shape, rows, length),
        )

    language, scalar = forward(section.minibatch_size)
    parts = minibatches * section.microbatches
    scoring = 2 * parts * flops.forward_work(shape, language / section.microbatches)
    has_critic = advantages.named(section).needs_critic
    scalars = has_critic + (not section.reward_function)  # value network and reward model
    scoring += scalars * parts * flops.forward_work(scalar_shape, scalar / section.microbatches)
    read = section.minibatch_size, length, section.microbatches
    update = {"policy": flops.update_work(shape, language, *read, outputs=data.max_response, adapters=adapters)}
    adam = flops.adam_work(shape, adapters)
    if has_critic:
        update["value"] = flops.update_work(scalar_shape, scalar, *read, adapters=adapters)
        adam += flops.adam_work(scalar_shape, adapters)
    update["adam"] = adam
    if with_text:
        windows = section.minibatch_size * section.ptx_examples_per_episode
        ptx = flops.forward_flops(shape, windows, section.ptx_length, section.ptx_length)
        read = windows, section.ptx_length, section.ptx_microbatches
        update["ptx"] = flops.update_work(shape, ptx, *read, outputs=section.ptx_length, adapters=adapters)
    return {"prefill": prefill, "decode": decode}, {"scoring": scoring}, update


def _total(phases: dict[str, Work]) -> Work:
    return sum(phases.values(), Work(0.0, 0.0, 0.0))


def _first_rows(tree: shapes.Tree, rows: int) -> shapes.Tree:
    return jax.tree.map(lambda x: shapes.array((rows, *x.shape[1:]), x.dtype), tree)
