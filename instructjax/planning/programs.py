"""Builds the programs of a recipe as its stages do, with shapes instead of arrays.

Batches have the maximum size: every demonstration and every ranking has its own row.
"""

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
from instructjax.batch import LMBatch, PromptBatch, RankingBatch
from instructjax.errors import ConfigError
from instructjax.models import flops, lora, sizes
from instructjax.models.config import TransformerConfig
from instructjax.models.flops import Work
from instructjax.models.lora import LoraConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.stages import ppo, ppo_weights
from instructjax.stages.adapter_base import lora_config
from instructjax.stages.run import policy_config
from instructjax.stages.trained import random_params
from instructjax.stages.training_step import training_step, with_dropout
from instructjax.training import objectives, optimizer
from instructjax.training import state as train_state
from instructjax.training.step import Loss

Tree = Any  # of jax.ShapeDtypeStruct
EOS, PAD = 1, 0  # no shape depends on these ids


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, before it is compiled.

    Attributes:
      name: a key of `PROGRAMS`.
      function: a pure function, `function(state, batch, key, *constants)`.
      state: the state that the stage keeps between steps. The program returns it, updated, if
        `donated`.
      batch: the rows of a step.
      constants: weights that the stage only reads.
      donated: whether the result reuses the memory of the state.
      phases: lower bounds on the cost of each phase, in the order in which they run.
      rows: what must divide over "data" and "fsdp". For each expression of config keys, the
        number of rows and the number of parts in which they are computed.
      cache: bytes of keys and values in memory at a time, over all devices.
      trips: how often its while-loops run if no response ends early; see
        `flops.count_matmul_flops`.
    """

    name: str
    function: Callable[..., Any]
    state: Tree
    batch: Tree
    constants: tuple[Tree, ...]
    donated: bool
    phases: dict[str, Work]
    rows: dict[str, tuple[int, int]]
    cache: float = 0.0
    trips: tuple[float, ...] = ()

    @property
    def work(self) -> Work:
        """The sum of all phases."""
        return sum(self.phases.values(), Work(0.0, 0.0, 0.0))


def model_configs(config: ml_collections.ConfigDict) -> tuple[TransformerConfig, TransformerConfig]:
    """Returns the shape of the policy, and that of reward model and value network."""
    shape = policy_config(config, config.tokenizer.vocab_size)
    return shape, sizes.resized(shape, config.reward.size if ppo_weights.uses_reward_model(config.ppo) else "")


def build(name: str, config: ml_collections.ConfigDict) -> Program:
    """Builds one program of a recipe.

    Args:
      name: a key of `PROGRAMS`.
      config: a whole recipe.

    Raises:
      ConfigError: the recipe is for pmap, or a value of `model` is not allowed.
    """
    if config.parallel.mode != "jit":
        raise ConfigError(f"parallel.mode: expected 'jit' for a plan, found {config.parallel.mode!r}")
    return PROGRAMS[name](name, config)


def _language_model(stage: str, config: ml_collections.ConfigDict) -> Program:
    section, adapters = config[stage], None if stage == "pretrain" else lora_config(config)
    shape, _ = model_configs(config)
    length = section.length if stage == "pretrain" else config.data.max_prompt + config.data.max_response
    model = LanguageModel(with_dropout(shape, config, stage))
    step, adam = _training_step(config, stage, objectives.language_model_loss(model), adapters)
    base, learned = _learned(LanguageModel(shape), adapters)
    forward = flops.forward_flops(shape, section.batch_size, length, length)
    rows = section.batch_size, length, section.microbatches
    work = flops.update_work(shape, forward, *rows, outputs=length, adapters=adapters)
    return Program(
        name=stage,
        function=step,
        state=jax.eval_shape(lambda params: train_state.create(params, adam), learned),
        batch=_lm_batch(section.batch_size, length),
        constants=base,
        donated=True,
        phases={"gradients": work, "update": flops.adam_work(shape, adapters)},
        rows=_microbatch(stage, section),
    )


def _reward(name: str, config: ml_collections.ConfigDict) -> Program:
    """Builds a step on the longest rankings that the recipe allows, one per row.

    Shorter rankings need less.
    """
    section, adapters = config.reward, lora_config(config)
    _, shape = model_configs(config)
    answers = config.comparisons.max_answers
    length = config.data.max_prompt + answers * config.data.max_response
    model = ScalarModel(with_dropout(shape, config, "reward"))
    step, adam = _training_step(config, "reward", objectives.ranking_loss(model), adapters)
    base, learned = _learned(ScalarModel(shape), adapters)
    unit = _devices(config) * section.microbatches
    rows = -(-section.batch_size // unit) * unit  # the stage pads a batch until it divides
    tokens, ends = _array((rows, length), jnp.int32), _array((rows, 1, answers), jnp.int32)
    forward = flops.ranking_flops(shape, section.batch_size, config.data.max_prompt, answers, config.data.max_response)
    work = flops.update_work(shape, forward, section.batch_size, length, section.microbatches, adapters=adapters)
    return Program(
        name=name,
        function=step,
        state=jax.eval_shape(lambda params: train_state.create(params, adam), learned),
        batch=RankingBatch(
            *(tokens, tokens, tokens, tokens, ends), _array(ends.shape, jnp.float32), _array(ends.shape, bool)
        ),
        constants=base,
        donated=True,
        phases={"gradients": work, "update": flops.adam_work(shape, adapters)},
        rows={},
    )


def _ppo(name: str, config: ml_collections.ConfigDict, with_text: bool) -> Program:
    """Builds an iteration or one of its three parts.

    Each part holds all weights and optimizer state of an iteration.
    """
    section, data, adapters = config.ppo, config.data, lora_config(config)
    shape, scalar_shape = model_configs(config)
    policy, scalar = LanguageModel(shape), ScalarModel(scalar_shape)
    estimator, by_function = advantages.named(section), bool(section.reward_function)
    learners = ppo.make_learners(config, section, policy, scalar if estimator.needs_critic else None)
    iteration = ppo.make_programs(config, section, learners, scalar, estimator, eos_id=EOS, pad_id=PAD)
    functions = _ppo_functions(iteration, by_function)
    state, constants = _ppo_weights(config, learners, (policy, scalar))
    tokens = _array((section.batch_size // section.samples_per_prompt, data.max_prompt), jnp.int32)
    prompts = PromptBatch(tokens, tokens)
    minibatches = section.batch_size // section.minibatch_size
    windows = section.ptx_examples_per_episode * section.minibatch_size
    text = _lm_batch(windows * minibatches, section.ptx_length) if with_text else None
    key = jax.eval_shape(lambda: jax.random.key(0))
    scores = _array((section.batch_size,), jnp.float32) if by_function else None

    episodes = jax.eval_shape(functions["rollout"], state, prompts, key, *constants)
    experience, _ = jax.eval_shape(functions["scoring"], state, (episodes, scores), key, *constants)
    rollout, scoring, update = _ppo_phases(config, with_text)
    part = name.rpartition(" ")[2]
    parts: dict[str, tuple[Tree, dict[str, Work]]] = {
        "rollout": (prompts, rollout),
        "scoring": ((episodes, scores), scoring),
        "update": (
            (
                _first_rows(experience, section.minibatch_size),
                _lm_batch(windows, section.ptx_length) if with_text else None,
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
    return Program(
        name=name,
        function=functions[part],
        state=state,
        batch=batch,
        constants=constants,
        donated=part in ("update", "iteration"),
        phases=phases,
        rows=_ppo_rows(section, with_text),
        cache=_cache(config, shape) if part == "rollout" or part == "iteration" and not by_function else 0.0,
        trips=_trips(section, data.max_response),
    )


def _ppo_functions(iteration: Iteration, by_function: bool) -> dict[str, Callable[..., Any]]:
    """Returns each of `PARTS` as a function of a state, a batch, a key, the frozen weights and the bases."""

    def rollout(state: PPOState, prompts: PromptBatch, key: Any, _: Any, *bases: Tree) -> Any:
        return iteration.on(bases).rollout(state.policy.params, prompts, key)[0]

    def observe(state: PPOState, batch: Any, _: Any, frozen: Any, *bases: Tree) -> Any:
        return iteration.on(bases).observe(state, frozen, *batch)

    def update(state: PPOState, batch: Any, _: Any, __: Any, *bases: Tree) -> Any:
        return iteration.on(bases).update(state, *batch)

    def step(state: PPOState, batch: Any, key: Any, frozen: Any, *bases: Tree) -> Any:
        on_bases = iteration.on(bases)
        return (on_bases.learn if by_function else on_bases.step)(state, batch, key, frozen)

    return dict(zip(PARTS, (rollout, observe, update, step), strict=True))


def _ppo_weights(
    config: ml_collections.ConfigDict,
    learners: tuple[Learner, Learner | None],
    models: tuple[LanguageModel, ScalarModel],
) -> tuple[PPOState, tuple[Tree, ...]]:
    """Returns the state of an iteration, and the weights that it only reads: the frozen ones and the bases."""
    section, adapters = config.ppo, lora_config(config)
    (base, learned), (scalar_base, scalar_learned) = (_learned(model, adapters) for model in models)
    state = jax.eval_shape(
        lambda policy, value: ppo.initial_state(policy, value, learners, section), learned, scalar_learned
    )
    one_base = config.lora.one_base or not ppo_weights.uses_reward_model(section)
    both = base if one_base else (*base, *scalar_base)
    freeze = functools.partial(ppo.freeze, dtype=section.frozen_dtype or models[0].config.param_dtype)
    frozen, bases = jax.eval_shape(freeze, learned, None if section.reward_function else scalar_learned, both)
    return state, (frozen, *bases)


def _ppo_rows(section: ml_collections.ConfigDict, with_text: bool) -> dict[str, tuple[int, int]]:
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
    return held + flops.cache_bytes(shape, min(section.rollout_refill * _devices(config), rows), data.max_prompt)


def _devices(config: ml_collections.ConfigDict) -> int:
    """Returns the number of devices over which the rows are divided."""
    return max(config.parallel.data, 1) * config.parallel.fsdp


def _ppo_phases(config: ml_collections.ConfigDict, with_text: bool) -> tuple[dict[str, Work], ...]:
    section, data, adapters = config.ppo, config.data, lora_config(config)
    shape, scalar_shape = model_configs(config)
    rows, length = section.batch_size, data.max_prompt + data.max_response
    minibatches = rows // section.minibatch_size
    turns, rounds = refills(section, _devices(config)) if section.rollout_refill else (None, section.rollout_parts)
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


PARTS = ("rollout", "scoring", "update", "iteration")  # of PPO
PROGRAMS: dict[str, Callable[[str, ml_collections.ConfigDict], Program]] = {
    "pretrain": _language_model,
    "sft": _language_model,
    "reward": _reward,
    "ppo_init": _language_model,
    **{f"ppo {part}": functools.partial(_ppo, with_text=False) for part in PARTS},
    **{f"ppo_ptx {part}": functools.partial(_ppo, with_text=True) for part in PARTS},
}


def _microbatch(stage: str, section: ml_collections.ConfigDict) -> dict[str, tuple[int, int]]:
    return {f"{stage}.batch_size / {stage}.microbatches": (section.batch_size, section.microbatches)}


def _total(phases: dict[str, Work]) -> Work:
    return sum(phases.values(), Work(0.0, 0.0, 0.0))


def _training_step(
    config: ml_collections.ConfigDict, section: str, loss: Loss, adapters: LoraConfig | None
) -> tuple[Callable, Any]:
    """Returns a stage's step and optimizer; no shape depends on the number of its steps."""
    schedule = optimizer.cosine_schedule(config[section].learning_rate, 100)
    return training_step(config, section, loss, schedule, has_base=adapters is not None)


def _learned(model: Any, adapters: LoraConfig | None) -> tuple[tuple[Tree, ...], Tree]:
    """Returns a model's base, or () if all its weights learn, and what learns."""
    key = jax.random.key(0)
    whole = jax.eval_shape(lambda: random_params(model, key))
    if adapters is None:
        return (), whole
    added = jax.eval_shape(lambda: lora.init(key, adapters, model.config))
    base, learned = lora.split(lora.attach(whole, added))
    return (base,), learned


def _array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _lm_batch(rows: int, length: int) -> LMBatch:
    tokens = _array((rows, length), jnp.int32)
    return LMBatch(tokens, tokens, tokens, _array((rows, length), jnp.float32))


def _first_rows(tree: Tree, rows: int) -> Tree:
    return jax.tree.map(lambda x: _array((rows, *x.shape[1:]), x.dtype), tree)
