"""Iterations without padding give the results of padded ones: packed episodes, and rollouts of narrow prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from instructjax.algorithms.advantages import leave_one_out, per_response
from instructjax.algorithms.ppo import Learner, make_iteration
from instructjax.batch import PromptBatch
from instructjax.runs import invariants
from instructjax.training import parallel
from tests import fakes
from tests.algorithms import test_ppo as ppo

WIDTH = 16
ENDS = 1, 2, 3, 4  # so many that most responses are short
PACKED = {"epochs": 2, "microbatches": 4, "pack_episodes": True}


def prompts(seed=0):
    """Returns prompts of which most are short, and some have one token."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.geometric(0.3, size=(ppo.BATCH, 1)) ** 1.2, WIDTH).astype(int)
    lengths[:3, 0] = 1, 1, WIDTH
    segments = (np.arange(WIDTH) >= WIDTH - lengths).astype(np.int32)
    tokens = rng.integers(6, fakes.CONFIG.vocab_size, size=segments.shape).astype(np.int32)
    return PromptBatch(tokens * segments, segments)


def two_iterations(step, params):
    state, frozen = ppo.initial(params)
    metrics = []
    for seed in range(2):
        state, found = step(state, (prompts(seed), None), ppo.KEY, frozen)
        metrics.append(ppo.numbers(found))
    return state, metrics


def assert_same(found, expected):
    (state, metrics), (other, others) = found, expected
    ppo.assert_close(state, other, rtol=1e-4, atol=2e-5)
    for here, there in zip(metrics, others, strict=True):
        assert here.keys() == there.keys()
        assert invariants.violations(here, "float32") == []
        assert here["padding"] < 0.7 * there["padding"]
        for name in ("response_tokens", "missing_eos", "mask_mismatches"):
            assert here[name] == there[name], name
        # Under pmap each device decodes until its own rows are done.
        apart = [name for name in here if name not in ("padding", "rollout_padding")]
        np.testing.assert_allclose([here[n] for n in apart], [there[n] for n in apart], rtol=2e-3, atol=2e-5)


ENTROPY = pytest.param({"entropy_coefficient": 0.1, "temperature": 0.7}, id="entropy", marks=pytest.mark.slow)


@pytest.mark.parametrize("keys", [pytest.param({}, id="plain"), ENTROPY])
def test_packed_episodes_give_the_same_iterations(keys):
    keys = {"epochs": 2, **keys}
    padded = jax.jit(ppo.make(ppo.changed(**keys), models=ppo.REAL, eos_id=ENDS))
    packed = jax.jit(ppo.make(ppo.changed(**{**PACKED, **keys}), models=ppo.REAL, eos_id=ENDS))
    expected = two_iterations(padded, ppo.real_params())
    assert_same(two_iterations(packed, ppo.real_params()), expected)
    assert expected[1][1]["max_ratio_deviation"] > 1e-3  # there was something to compare


SCALAR = ppo.PlantedScalar(lambda tokens, segments: jnp.sin(tokens))  # of one token, whatever else is in its row


@functools.cache
def with_fakes(mode=None, **keys):
    """Runs two iterations of models that compile fast, on one device or on eight."""
    axis = parallel.axis_name(mode) if mode else None
    iterate = ppo.make(ppo.changed(**keys), models=(ppo.Bigram(), SCALAR), eos_id=ENDS, axis_name=axis)
    if mode is None:
        return two_iterations(jax.jit(iterate), ppo.fake_params())
    config = ml_collections.ConfigDict(ppo.PARALLEL | {"mode": mode})
    with parallel.on_mesh(config):
        return two_iterations(parallel.compile_step(iterate, config), ppo.fake_params())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_pack_their_rows(mode):
    assert jax.device_count() == 8
    assert_same(with_fakes(mode, **{**PACKED, "microbatches": 2}), with_fakes(epochs=2))


@pytest.mark.slow
def test_without_a_critic_and_with_scores_of_the_host():
    """Learns from four samples per prompt and given scores, as RLOO with a reward function does."""

    def learned(**keys):
        iterate = make_iteration(
            Learner(ppo.Bigram(), ppo.SGD),
            None,
            None,
            per_response(leave_one_out),
            ppo.changed(**keys),
            max_response=ppo.R,
            eos_id=ENDS,
            pad_id=ppo.PAD,
            samples_per_prompt=4,
        )
        state, frozen = ppo.initial(ppo.fake_params())
        state = state.replace(value=None)
        some = jax.tree.map(lambda x: x[: ppo.BATCH // 4], prompts())
        episodes, _ = jax.jit(iterate.sample)(state, some, ppo.KEY)
        scores = np.linspace(-1, 1, ppo.BATCH, dtype=np.float32)
        state, metrics = jax.jit(iterate.learn)(state, (episodes, scores, None), ppo.KEY, frozen)
        return state, [ppo.numbers(metrics)]

    assert_same(learned(**PACKED), learned(epochs=2))


@pytest.mark.parametrize(("parts", "samples"), [(2, 4), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_narrow_prompts_give_the_same_tokens(parts, samples):
    """Samples parts of prompts of similar lengths, each in the least of three widths that holds them."""
    policy, _ = ppo.real_params()
    some = jax.tree.map(lambda x: x[: ppo.BATCH // samples], prompts())

    def sampled(**keys):
        iterate = ppo.make(ppo.changed(**keys), models=ppo.REAL, eos_id=ENDS)
        iterate = dataclasses.replace(iterate, samples_per_prompt=samples)
        return jax.jit(iterate.rollout)(policy, some, ppo.KEY)[0]

    found, expected = sampled(rollout_widths=3, rollout_parts=parts), sampled()
    for name in ("tokens", "segments", "response_mask", "group"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    ppo.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-6)
    inside = expected.segments > 0
    np.testing.assert_array_equal(found.positions * inside, expected.positions * inside)
