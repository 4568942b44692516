"""The first iterations of a fresh critic: it learns alone, and the policy is not touched."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from instructjax.algorithms.ppo import PPOState
from instructjax.runs import invariants
from instructjax.training import parallel
from tests.algorithms import test_ppo as ppo

WARMUP = 2
BETA = 0.05


def started():
    """Returns (state, frozen) with a value network that is not the reward model, and an adapted KL coefficient."""
    (policy, reward), fresh = ppo.fake_params(), ppo.weights(0.0)
    state, _ = ppo.initial((policy, fresh))
    _, frozen = ppo.initial((policy, reward))
    return state.replace(kl_coefficient=jnp.float32(BETA)), frozen


def iterate(step, count):
    """Returns the states before, between and after `count` iterations, on the host, and the metrics of each."""
    state, frozen = started()
    states, metrics = [jax.device_get(state)], []
    for seed in range(count):
        state, found = step(state, (ppo.prompts(seed), ppo.text()), ppo.KEY, frozen)
        states.append(jax.device_get(state))
        metrics.append(ppo.numbers(found))
    return states, metrics


def make(warmup, **given):
    return ppo.make(ppo.changed(value_warmup_iterations=warmup, kl_target=0.1, kl_horizon=100), **given)


def same(left, right):
    """Returns whether two trees are equal to the bit."""
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.fixture(scope="module")
def warmed() -> tuple[list[PPOState], list[dict]]:
    return iterate(jax.jit(make(WARMUP)), WARMUP + 1)


def test_only_the_critic_changes_while_it_warms_up(warmed):
    states, _ = warmed
    for before, after in zip(states[:WARMUP], states[1:], strict=False):
        assert same(before.policy, after.policy)  # weights, moments, counters and average
        assert same(before.kl_coefficient, after.kl_coefficient)
        assert ppo.distance(before.value.params, after.value.params) > 1e-4
        assert after.step == before.step + 1
    last, after = states[WARMUP], states[-1]
    assert ppo.distance(last.policy.params, after.policy.params) > 1e-4
    assert ppo.distance(last.policy.ema, after.policy.ema) > 1e-5
    assert after.kl_coefficient != last.kl_coefficient
    assert after.policy.step == ppo.MINIBATCHES and after.value.step == ppo.MINIBATCHES * (WARMUP + 1)


def test_its_critic_learns_what_it_would_learn_from_the_same_episodes(warmed):
    states, _ = warmed
    (_, without), _ = iterate(jax.jit(make(0)), 1)
    ppo.assert_close(states[1].value.params, without.value.params, rtol=1e-6)
    assert not same(without.policy, states[1].policy)


def test_metrics_of_the_policy_are_left_out_while_it_waits(warmed):
    _, metrics = warmed
    for found in metrics[:WARMUP]:
        assert not {"policy_loss", "ptx_loss", "clip_fraction", "gradient_norm"} & set(found)
        assert {"value_loss", "explained_variance", "reward"} <= set(found) and abs(found["kl"]) < 1e-5
        assert invariants.violations(found, "float32") == []
    assert {"policy_loss", "ptx_loss", "gradient_norm"} <= set(metrics[-1])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_wait_like_one(warmed, mode):
    config = ml_collections.ConfigDict(ppo.PARALLEL | {"mode": mode})
    with parallel.on_mesh(config):
        step = parallel.compile_step(make(WARMUP, axis_name=parallel.axis_name(mode)), config)
        states, _ = iterate(step, WARMUP + 1)
    expected, _ = warmed
    assert same(states[WARMUP].policy, expected[WARMUP].policy)
    ppo.assert_close(states[-1], expected[-1], rtol=1e-4, atol=1e-5)
