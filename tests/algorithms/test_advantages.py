"""Estimators that compare the responses to one prompt: their equations, their laws, and PPO without a critic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.algorithms import advantages
from instructjax.algorithms.ppo import Frozen, Learner, PPOState, make_iteration
from instructjax.errors import ConfigError
from instructjax.training import parallel
from instructjax.training import state as train_state
from instructjax.training.metrics import compute
from tests.algorithms import test_ppo as ppo

COMPARISONS = (advantages.leave_one_out, advantages.group_relative)


def leave_one_out(rewards, groups):
    found = []
    for i, reward in enumerate(rewards):
        others = [other for j, other in enumerate(rewards) if groups[j] == groups[i] and j != i]
        found.append(reward - np.mean(others) if others else 0.0)
    return np.array(found)


def group_relative(rewards, groups):
    found = []
    for i, reward in enumerate(rewards):
        group = np.array([other for j, other in enumerate(rewards) if groups[j] == groups[i]])
        found.append((reward - group.mean()) / (group.std() + advantages.EPSILON))
    return np.array(found)


@st.composite
def grouped(draw):
    """Rewards of up to 12 responses, each to one of up to 4 prompts, in any order."""
    size = draw(st.integers(1, 12))
    rewards = draw(st.lists(st.integers(-20, 20), min_size=size, max_size=size))
    groups = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return np.array(rewards) / 4, np.array(groups, np.int32)


@pytest.mark.parametrize(
    ("compare", "loop"), [(advantages.leave_one_out, leave_one_out), (advantages.group_relative, group_relative)]
)
@given(grouped())
@settings(deadline=None)
def test_it_is_the_papers_equation(compare, loop, given):
    rewards, groups = given
    found = compare(jnp.asarray(rewards, jnp.float32), jnp.asarray(groups))
    np.testing.assert_allclose(found, loop(rewards, groups), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compare", COMPARISONS)
@given(grouped(), st.integers(-8, 8))
@settings(deadline=None)
def test_a_shift_of_a_prompts_rewards_changes_nothing(compare, given, shift):
    rewards, groups = (jnp.asarray(x, dtype) for x, dtype in zip(given, (jnp.float32, jnp.int32), strict=True))
    shifted = jnp.where(groups == groups[0], rewards + shift, rewards)
    np.testing.assert_allclose(compare(shifted, groups), compare(rewards, groups), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compare", COMPARISONS)
@given(grouped(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_changes_nothing(compare, given, random):
    rewards, groups = given
    order = np.array(random.sample(range(len(rewards)), len(rewards)))
    found = compare(jnp.asarray(rewards[order], jnp.float32), jnp.asarray(groups[order]))
    expected = compare(jnp.asarray(rewards, jnp.float32), jnp.asarray(groups))
    np.testing.assert_allclose(found, expected[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compare", COMPARISONS)
@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 7))
@settings(deadline=None)
def test_equal_rewards_and_a_single_response_have_advantages_of_exactly_zero(compare, reward, size):
    found = compare(jnp.full(size, reward, jnp.float32), jnp.zeros(size, jnp.int32))
    np.testing.assert_array_equal(found, np.zeros(size))


@pytest.mark.parametrize("compare", COMPARISONS)
def test_rows_may_lie_on_any_device(compare):
    rewards, groups = jnp.array([1.0, 2.0, 4.0, 0.0, 3.0, 5.0, 2.0, 2.5]), jnp.array([0, 1, 0, 2, 1, 0, 2, 2])
    mapped = jax.pmap(functools.partial(compare, axis_name="data"), axis_name="data")
    np.testing.assert_allclose(
        mapped(rewards.reshape(4, 2), groups.reshape(4, 2)).reshape(-1), compare(rewards, groups), rtol=1e-6
    )


def test_all_tokens_of_a_response_share_its_advantage_and_padding_has_none():
    rewards, mask = jnp.array([[0.5, 0.5, 0.0], [2.0, 0.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    estimator = advantages.per_response(advantages.leave_one_out)
    found, returns = estimator.estimate(rewards, mask, None, jnp.zeros(2, jnp.int32), None)
    np.testing.assert_allclose(found, [[-1.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert returns is None


@pytest.mark.parametrize(
    ("compare", "loop"), [(advantages.leave_one_out, leave_one_out), (advantages.group_relative, group_relative)]
)
def test_whole_episodes_equal_a_slow_loop_and_nan_behind_the_mask_changes_nothing(compare, loop):
    rng = np.random.default_rng(3)
    rewards, groups = rng.normal(size=(9, 6)), np.array([0, 2, 0, 1, 2, 0, 1, 2, 5], np.int32)
    lengths = rng.integers(1, 7, size=9)
    mask = (np.arange(6) < lengths[:, None]).astype(np.float64)
    totals = [sum(row[:length]) for row, length in zip(rewards, lengths, strict=True)]
    expected = np.where(mask > 0, loop(totals, groups)[:, None], 0)
    with jax.enable_x64(True):
        estimator = advantages.per_response(compare)
        hidden = np.where(mask > 0, rewards, np.nan)
        found, _ = estimator.estimate(jnp.asarray(hidden), jnp.asarray(mask), None, jnp.asarray(groups), None)
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_better_responses_to_a_prompt_have_larger_advantages_and_ties_equal_ones(compare):
    rewards, groups = jnp.array([3.0, 1.0, 3.0, 2.0, -5.0, 7.0]), jnp.array([0, 0, 0, 0, 1, 1])
    found = compare(rewards, groups)
    assert found[0] == found[2] > found[3] > found[1] and found[5] > 0 > found[4]
    np.testing.assert_allclose([found[:4].sum(), found[4:].sum()], 0, atol=1e-5)  # Σ A = 0 in each group


@pytest.mark.parametrize(
    ("name", "needs_critic", "compare"),
    [("gae", True, None), ("rloo", False, leave_one_out), ("grpo", False, group_relative)],
)
def test_the_key_names_the_estimator(name, needs_critic, compare):
    estimator = advantages.named(ppo.changed(advantages=name))
    assert (estimator.needs_critic, estimator.needs_groups) == (needs_critic, not needs_critic)
    if compare:
        rewards, groups = np.array([[1.0], [3.0], [4.0]]), np.zeros(3, np.int32)
        found, _ = estimator.estimate(jnp.asarray(rewards), jnp.ones((3, 1)), None, jnp.asarray(groups), None)
        np.testing.assert_allclose(found[:, 0], compare(rewards[:, 0], groups), rtol=1e-5)


def without_critic(compare, samples, axis_name=None, config=ppo.PPO, models=ppo.FAKE):
    policy, scalar = models
    return make_iteration(
        Learner(policy, ppo.SGD),
        scalar,
        None,
        advantages.per_response(compare),
        config,
        max_response=ppo.R,
        eos_id=ppo.EOS,
        pad_id=ppo.PAD,
        samples_per_prompt=samples,
        axis_name=axis_name,
    )


def start():
    policy, reward = ppo.fake_params()
    average = train_state.create_averaged(jax.tree.map(jnp.copy, policy), ppo.SGD)
    return PPOState(jnp.zeros((), jnp.int32), average, None), Frozen(policy, reward)


def few_prompts(samples):
    return jax.tree.map(lambda x: x[: ppo.BATCH // samples], ppo.prompts())


@pytest.mark.parametrize("compare", COMPARISONS)
def test_an_iteration_needs_no_critic(compare):
    iterate, (state, frozen) = without_critic(compare, 4), start()
    episodes, _ = jax.jit(iterate.rollout)(state.policy.params, few_prompts(4), ppo.KEY)
    assert episodes.group.tolist() == [row // 4 for row in range(ppo.BATCH)]
    for row in range(ppo.BATCH):  # the samples of one prompt are next to each other
        np.testing.assert_array_equal(episodes.tokens[row, : ppo.P], episodes.tokens[row // 4 * 4, : ppo.P])
    after, metrics = jax.jit(iterate)(state, (few_prompts(4), None), ppo.KEY, frozen)
    values = compute([jax.device_get(metrics)])
    assert after.value is None and ppo.distance(after.policy.params, state.policy.params) > 1e-4
    assert not {name for name in values if name.startswith("value") or name in ("return", "explained_variance")}
    assert values["first_ratio_deviation"] < 1e-5


@pytest.mark.parametrize(
    "keys",
    [
        {"rollout_parts": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"rollout_parts": 2, "rollout_refill": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_responses_that_share_a_prefill_are_those_of_prompts_that_do_not(keys):
    models, (policy, _) = ppo.REAL, ppo.real_params()
    shared = without_critic(advantages.leave_one_out, 4, config=ppo.changed(**keys), models=models)
    found, _ = jax.jit(shared.rollout)(policy, few_prompts(4), ppo.KEY)
    repeated = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), few_prompts(4))
    expected, _ = jax.jit(ppo.make(models=models).rollout)(policy, repeated, ppo.KEY)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    ppo.assert_close(found.replace(group=expected.group), expected, rtol=1e-5, atol=1e-5)
    assert found.group.tolist() == [row // 4 for row in range(ppo.BATCH)]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_equal_one_without_a_critic(mode):
    config = ppo.ml_collections.ConfigDict(ppo.PARALLEL | {"mode": mode})
    state, frozen = start()
    expected, _ = jax.jit(without_critic(advantages.leave_one_out, 4))(state, (few_prompts(4), None), ppo.KEY, frozen)
    with parallel.on_mesh(config):
        iterate = without_critic(advantages.leave_one_out, 4, axis_name=parallel.axis_name(mode))
        found, _ = parallel.compile_step(iterate, config)(*_given(start()))
    ppo.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _given(started):
    state, frozen = started
    return state, (few_prompts(4), None), ppo.KEY, frozen


@pytest.mark.parametrize(
    ("samples", "message"),
    [(1, "samples_per_prompt: expected at least 2"), (5, "samples_per_prompt: expected a divisor of")],
)
def test_groups_must_have_two_or_more_responses_and_divide_the_batch(samples, message):
    with pytest.raises(ConfigError, match=message):
        without_critic(advantages.leave_one_out, samples)


def test_gae_needs_a_critic():
    policy, scalar = ppo.FAKE
    ends = {"max_response": ppo.R, "eos_id": ppo.EOS, "pad_id": ppo.PAD}
    with pytest.raises(ConfigError, match="critic: expected a critic"):
        make_iteration(Learner(policy, ppo.SGD), scalar, None, advantages.gae(1.0, 0.95), ppo.PPO, **ends)
