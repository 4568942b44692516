"""Every layout gives the same results: real networks, in each training step, on eight devices and on one."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from instructjax.algorithms.advantages import gae
from instructjax.algorithms.ppo import Frozen, Learner, PPOState, make_iteration
from instructjax.batch import LMBatch, PromptBatch
from instructjax.data import layouts
from instructjax.models import lora
from instructjax.models.lora import LoraConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import refilling, sampling
from instructjax.training import objectives, parallel
from instructjax.training import state as train_state
from instructjax.training.metrics import compute
from instructjax.training.step import train_step
from tests import fakes

CONFIG = dataclasses.replace(fakes.BANDED, vocab_size=24, logits_chunk=8)  # tokens on a device: several chunks
MODEL, SCALAR = LanguageModel(CONFIG), ScalarModel(CONFIG)
KEY = jax.random.key(0)
B, T, K, P, R = 16, 12, 3, 5, 6
EOS, PAD = 1, 0
ADAM = optax.adam(1e-2, eps=1e-3)

LAYOUTS = {
    "one device": None,
    "data": {},
    "fsdp": {"fsdp": 8},
    "all three": {"fsdp": 2, "tensor": 2},
    "all three, slots too": {"fsdp": 2, "tensor": 2, "shard_optimizer_state": True},
    "pmap": {"mode": "pmap"},
}
OTHERS = [name for name in LAYOUTS if name != "one device"]


def slow_but(kept, *names):
    """Returns parameters for every combination; those not in `kept` are slow, because compiling takes seconds."""
    combinations = list(itertools.product(*names))
    assert kept <= set(combinations)  # a mistyped name would silently make a test slow
    return [pytest.param(*one, marks=[] if one in kept else [pytest.mark.slow]) for one in combinations]


def config_of(layout):
    keys = {"mode": "jit", "data": -1, "fsdp": 1, "tensor": 1, "shard_optimizer_state": False}
    return ml_collections.ConfigDict(keys | (LAYOUTS[layout] or {}))


@contextlib.contextmanager
def on(layout):
    """Enters the mesh of a layout; without one, there is one device."""
    with contextlib.nullcontext() if LAYOUTS[layout] is None else parallel.on_mesh(config_of(layout)):
        yield config_of(layout)


def rows(rng, *shape):
    """Returns ragged rows [..., T] with padding on the right: (tokens, segments, positions)."""
    lengths = rng.integers(2, T + 1, size=(*shape, 1))
    segments = (np.arange(T) < lengths).astype(np.int32)
    positions = np.maximum(np.cumsum(segments, axis=-1) - 1, 0).astype(np.int32)
    return rng.integers(2, CONFIG.vocab_size, size=segments.shape).astype(np.int32) * segments, segments, positions


def text_batch(seed=0, size=B):
    rng = np.random.default_rng(seed)
    tokens, segments, positions = rows(rng, size)
    return LMBatch(tokens, segments, positions, (segments * (positions > 0)).astype(np.float32))


def answer_batch():
    """Returns demonstrations; only tokens after a prompt of ragged length have a weight."""
    batch = text_batch(1)
    starts = np.random.default_rng(2).integers(1, T, size=(B, 1))
    return batch.replace(weights=batch.weights * (np.arange(T) >= starts))


def ranking_batch(seed=3):
    """Returns rows of one or two prompts with one to three answers each, some of them tied."""
    rng = np.random.default_rng(seed)

    def tokens(most):
        return rng.integers(2, CONFIG.vocab_size, size=rng.integers(1, most + 1)).tolist()

    def ranking():
        answers = [tokens(3) for _ in range(rng.integers(1, K + 1))]
        return layouts.TokenizedRanking(tokens(3), answers, rng.integers(0, 3, size=len(answers)).tolist())

    made = [
        layouts.ranking_row(
            [ranking() for _ in range(rng.integers(1, 3))], length=2 * T, max_prompts=2, max_responses=K, pad_id=PAD
        )
        for _ in range(B)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *made)


def kept_gradients():
    """Builds an optimizer that changes nothing and has the last gradients as its state."""
    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, *_: (g, g))


OPTIMIZER = optax.chain(kept_gradients(), optax.adam(1e-2, eps=1e-3))

# Batches for one compiled step, one after the other. Pretraining and SFT differ only in their weights.
STEPS = {
    "pretrain and sft": (MODEL, objectives.language_model_loss, (text_batch, answer_batch), 1),
    "microbatches": (MODEL, objectives.language_model_loss, (text_batch, answer_batch), 2),
    "reward": (SCALAR, objectives.ranking_loss, (ranking_batch, ranking_batch), 1),
}


def steps(name, layout, *, eager=False, dropout=0.0):
    """Returns (states with their gradients, metrics) after each batch."""
    model, objective, batches, microbatches = STEPS[name]
    model = type(model)(dataclasses.replace(CONFIG, dropout=dropout))
    with on(layout) as config:
        axis = parallel.axis_name(config.mode)
        splits = {"microbatches": microbatches, "axis_name": axis}
        step = train_step(objective(model), OPTIMIZER, random=dropout > 0, **splits)
        step = step if eager else parallel.compile_step(step, config)
        begin = functools.partial(train_state.create, optimizer=OPTIMIZER)
        state, found = (
            parallel.build(begin, fakes.params(model), shard_optimizer_state=config.shard_optimizer_state),
            [],
        )
        for batch in batches:
            state, metrics = step(state, batch(), KEY)
            found.append((jax.device_get(state), compute([jax.device_get(metrics)])))
        return found


@functools.cache
def steps_on_one(name, **keys):
    return steps(name, "one device", **keys)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


QUICK = {
    ("pretrain and sft", "fsdp"),
    ("pretrain and sft", "all three, slots too"),
    ("microbatches", "data"),  # gradients are summed on each device first
    ("microbatches", "all three"),
    ("reward", "pmap"),
}


@pytest.mark.parametrize(("name", "layout"), slow_but(QUICK, STEPS, OTHERS))
def test_a_step_is_the_same_on_every_layout(name, layout):
    assert_close(steps(name, layout), steps_on_one(name))


def test_the_compared_gradients_are_not_zero():
    for name in STEPS:
        for state, _ in steps_on_one(name):
            gradients = state.opt_state[0]["trunk"]["blocks"]
            assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients) if leaf.ndim > 2)


@pytest.mark.parametrize(("name",), slow_but({("reward",)}, ["pretrain and sft", "reward"]))
def test_a_step_is_the_same_uncompiled(name):
    with jax.disable_jit():
        found = steps(name, "one device", eager=True)
    assert_close(found, steps_on_one(name))


@pytest.mark.parametrize(("layout",), slow_but({("all three",)}, ["data", "all three"]))
def test_dropout_is_the_same_on_every_mesh(layout):
    found, expected = (steps("pretrain and sft", where, dropout=0.2) for where in (layout, "one device"))
    assert_close(found, expected)
    assert abs(expected[0][1]["loss"] - steps_on_one("pretrain and sft")[0][1]["loss"]) > 1e-3


PPO = ml_collections.ConfigDict(
    {
        "batch_size": 2 * B,
        "minibatch_size": B,
        "epochs": 2,
        "temperature": 0.7,
        "kl_coefficient": 0.05,
        "discount": 1.0,
        "gae_lambda": 0.95,
        "clip_ratio": 0.2,
        "clip_value": 0.2,
        "reward_scale": 1.0,
        "reward_clip": 0.0,
        "kl_target": 0.0,
        "kl_horizon": 10_000,
        "entropy_coefficient": 0.0,
        "whiten_rewards": False,
        "missing_eos_penalty": 0.5,
        "value_warmup_iterations": 0,
        "ema_decay": 0.9,
        "ptx_coefficient": 2.0,
        "ptx_microbatches": 2,
        "microbatches": 1,
        "pack_episodes": False,
        "rollout_parts": 2,
        "rollout_refill": 0,
        "rollout_widths": 1,
    }
)


def prompt_batch():
    rng = np.random.default_rng(5)
    segments = (np.arange(P) >= rng.integers(0, P, size=(2 * B, 1))).astype(np.int32)
    return PromptBatch(rng.integers(2, CONFIG.vocab_size, size=segments.shape).astype(np.int32) * segments, segments)


def two_iterations(layout, adapters=None, eos_id=EOS, **keys):
    """Returns (state, metrics) after two iterations, of adapters on one base if they are given."""
    section = ml_collections.ConfigDict({**PPO.to_dict(), **keys})
    with on(layout) as config:
        iterate = make_iteration(
            Learner(MODEL, ADAM),
            SCALAR,
            Learner(SCALAR, ADAM),
            gae(PPO.discount, PPO.gae_lambda),
            section,
            max_response=R,
            eos_id=eos_id,
            pad_id=PAD,
            axis_name=parallel.axis_name(config.mode),
        )

        def begin(policy, value):
            policy, value = jax.tree.map(jnp.copy, (policy, value))
            policy, value = train_state.create_averaged(policy, ADAM), train_state.create(value, ADAM)
            return PPOState(jnp.zeros((), jnp.int32), policy, value)

        params, bases = (fakes.params(MODEL, noise=0.1), fakes.params(SCALAR, seed=7, noise=0.1)), ()
        if adapters is not None:
            fresh = lora.init(KEY, adapters, CONFIG)
            (base, policy), (_, value) = (lora.split(lora.attach(whole, fresh)) for whole in params)
            params, bases = (policy, value), parallel.build(lambda base: (base,), base)
        state = parallel.build(begin, *params, shard_optimizer_state=config.shard_optimizer_state)
        frozen = parallel.build(lambda policy, value: Frozen(policy, value), *params)
        step, metrics = parallel.compile_step(functools.partial(step_on_bases, iterate), config), []
        for seed in range(2):
            state, found = step(state, (prompt_batch(), text_batch(seed, 4 * B)), KEY, frozen, *bases)
            metrics.append(compute([jax.device_get(found)]))
        return jax.device_get(state), metrics


def step_on_bases(iterate, state, batch, key, frozen, *bases):
    return iterate.on(bases)(state, batch, key, frozen)


@functools.cache
def iterations_on_one(adapters=None, eos_id=EOS):
    return two_iterations("one device", adapters, eos_id)


@pytest.mark.parametrize(("layout",), slow_but({("all three, slots too",)}, OTHERS))
def test_an_iteration_of_ppo_ptx_is_the_same_on_every_layout(layout):
    assert_same_iterations(two_iterations(layout), iterations_on_one())


@pytest.mark.slow
@pytest.mark.parametrize("layout", OTHERS)
def test_an_iteration_on_one_base_is_the_same_on_every_layout(layout):
    adapters = LoraConfig(2, 1.0, 0.0, ("*",))
    assert_same_iterations(two_iterations(layout, adapters), iterations_on_one(adapters))


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [None, LoraConfig(2, 1.0, 0.0, ("*",))], ids=["all weights", "one base"])
@pytest.mark.parametrize("layout", OTHERS)
def test_packed_episodes_give_the_same_iteration_on_every_layout(layout, adapters):
    ends = tuple(range(1, 8))  # so many that responses are short
    packed = two_iterations(layout, adapters, ends, pack_episodes=True, microbatches=2)
    padded = iterations_on_one(adapters, ends)
    assert packed[1][0]["padding"] < padded[1][0]["padding"]
    assert_same_iterations(packed, padded, apart=("rollout_padding", "padding"))


def assert_same_iterations(found, expected, apart=("rollout_padding",)):
    (state, metrics), (expected_state, expected) = found, expected
    assert_close(state, expected_state)
    for here, there in zip(metrics, expected, strict=True):
        assert here.keys() == there.keys()
        # Over all sampled tokens, so that one different token would show.
        assert all(here[name] == there[name] for name in ("response_tokens", "missing_eos"))
        # Under pmap each device decodes until its own rows are done.
        names = [name for name in here if name not in apart]
        np.testing.assert_allclose(
            [here[name] for name in names], [there[name] for name in names], rtol=2e-4, atol=1e-5
        )


@functools.cache
def sampled(layout, refill=0, dtype=""):
    """Samples a batch of episodes; with refill, in half as many rows as prompts."""
    model = LanguageModel(dataclasses.replace(CONFIG, decoding_dtype=dtype))
    draw = functools.partial(refilling.sample, rows=B, refill=refill) if refill else sampling.sample
    with on(layout):
        params = parallel.build(lambda params: params, fakes.params(MODEL, noise=0.1))
        sample = jax.jit(
            lambda params, prompts: draw(
                model,
                params,
                prompts,
                sampling.row_keys(KEY, 2 * B),
                sampling.categorical(0.7),
                max_response=R,
                eos_id=EOS,
                pad_id=PAD,
            )[0]
        )
        return jax.device_get(sample(params, prompt_batch()))


@pytest.mark.parametrize(
    ("layout", "refill"),
    slow_but({("data", 0), ("all three", 1)}, [name for name in OTHERS if name != "pmap"], [0, 1]),
)
def test_sampled_tokens_are_the_same_on_every_mesh(layout, refill):
    assert_same_samples(sampled(layout, refill), sampled("one device"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int8xint8"])
@pytest.mark.parametrize("layout", [name for name in OTHERS if name != "pmap"])
def test_weights_in_int8_sample_the_same_tokens_on_every_mesh(layout, dtype):
    assert_same_samples(sampled(layout, dtype=dtype), sampled("one device", dtype=dtype))


def assert_same_samples(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert len(np.unique(expected.tokens)) > CONFIG.vocab_size // 2
