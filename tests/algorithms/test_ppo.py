"""A PPO iteration: what it changes and what it leaves alone, and equal results on one device and on eight."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from instructjax.algorithms.advantages import gae
from instructjax.algorithms.ppo import Frozen, Learner, PPOState, make_iteration
from instructjax.batch import LMBatch, PromptBatch
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.runs import invariants
from instructjax.training import parallel
from instructjax.training import state as train_state
from instructjax.training.metrics import Mean, compute
from tests import fakes

PAD, EOS = 0, 1
P, R, T = 4, 5, 8
BATCH, MINIBATCH = 32, 16
MINIBATCHES = BATCH // MINIBATCH
KEY = jax.random.key(3)
SGD = optax.sgd(0.05)

PPO = ml_collections.ConfigDict(
    {
        "batch_size": BATCH,
        "minibatch_size": MINIBATCH,
        "epochs": 1,
        "temperature": 1.0,
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
        "ptx_examples_per_episode": 1,
        "ptx_microbatches": 2,
        "microbatches": 1,
        "pack_episodes": False,
        "rollout_parts": 1,
        "rollout_refill": 0,
        "rollout_widths": 1,
    }
)
PARALLEL = {"mode": "jit", "data": -1, "fsdp": 1, "tensor": 1, "shard_optimizer_state": False}
MODEL, SCALAR = LanguageModel(fakes.CONFIG), ScalarModel(fakes.CONFIG)


def changed(**keys):
    return ml_collections.ConfigDict({**PPO.to_dict(), **keys})


@flax.struct.dataclass
class Bigram:
    """A fake LanguageModel that predicts the next token from the last one, and compiles fast."""

    config: object = flax.struct.field(pytree_node=False, default=fakes.CONFIG)

    def decoding_params(self, params):
        return params

    def unembedding_params(self, params):
        return params

    def apply(self, variables, tokens, *row, method=None, **_):
        params = variables["params"]
        if method == "unembed":
            return tokens @ params["out"]
        hidden = jnp.tanh(params["embedding"][tokens])
        cache = row[2] if len(row) == 3 else None
        return (hidden if method == "hidden" else hidden @ params["out"]), cache


@flax.struct.dataclass
class PlantedScalar:
    """A fake ScalarModel: a known function of the tokens so far, scaled and shifted by two weights."""

    of_tokens: object = flax.struct.field(pytree_node=False)

    def apply(self, variables, tokens, segments, *_, **__):
        params = variables["params"]
        return params["scale"] * self.of_tokens(tokens, segments) + params["shift"]


def constant(tokens, segments):
    return jnp.ones(tokens.shape, jnp.int32)


def uneven(tokens, segments):
    return jnp.cumsum(jnp.sin(tokens) * (segments > 0), axis=1)


def weights(scale, shift=0.0):
    return {"scale": jnp.asarray(scale), "shift": jnp.asarray(shift)}


REAL = MODEL, SCALAR
FAKE = Bigram(), PlantedScalar(uneven)


def make(config=PPO, *, models=FAKE, optimizers=(SGD, SGD), eos_id=EOS, axis_name=None):
    policy, scalar = models
    return make_iteration(
        Learner(policy, optimizers[0]),
        scalar,
        Learner(scalar, optimizers[1]),
        gae(config.discount, config.gae_lambda),
        config,
        max_response=R,
        eos_id=eos_id,
        pad_id=PAD,
        axis_name=axis_name,
    )


def real_params():
    return fakes.params(MODEL, noise=0.1), fakes.params(SCALAR, seed=7, noise=0.1)


def fake_params(seed=0, scalar=None):
    width, vocabulary = 8, fakes.CONFIG.vocab_size
    first, second = jax.random.split(jax.random.key(seed))
    bigram = {
        "embedding": jax.random.normal(first, (vocabulary, width)),
        "out": 0.3 * jax.random.normal(second, (width, vocabulary)),
    }
    return bigram, weights(0.7, 0.1) if scalar is None else scalar


def initial(params, optimizers=(SGD, SGD)):
    """Returns (state, frozen) in float32: the policy is the reference, the value network the reward model."""
    policy, scalar = params
    state = PPOState(
        step=jnp.zeros((), jnp.int32),
        policy=train_state.create_averaged(jax.tree.map(jnp.copy, policy), optimizers[0]),
        value=train_state.create(jax.tree.map(lambda x: jnp.array(x, jnp.float32), scalar), optimizers[1]),
    )
    return state, Frozen(reference=policy, reward=scalar)


def prompts(seed=0):
    """Returns ragged prompts without EOS and without token 5, which a test counts."""
    rng = np.random.default_rng(seed)
    segments = (np.arange(P) >= rng.integers(0, P, size=(BATCH, 1))).astype(np.int32)
    tokens = rng.integers(6, fakes.CONFIG.vocab_size, size=(BATCH, P)).astype(np.int32)
    return PromptBatch(tokens * segments, segments)


def text(seed=0):
    """Returns ragged windows of pretraining text."""
    rng = np.random.default_rng(seed)
    inside = (np.arange(T) < rng.integers(2, T + 1, size=(BATCH, 1))).astype(np.int32)
    tokens = rng.integers(2, fakes.CONFIG.vocab_size, size=(BATCH, T)).astype(np.int32)
    positions = np.where(inside, np.arange(T), 0).astype(np.int32)
    return LMBatch(tokens, inside, positions, inside * (np.arange(T) > 0).astype(np.float32))


def assert_close(found, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), found, expected)


def distance(left, right):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, left, right)))


def numbers(metrics):
    return compute([jax.device_get(metrics)])


@pytest.fixture(scope="module")
def ptx():
    """Runs the first iteration of PPO-ptx: returns the states before and after, frozen weights and metrics."""
    before, frozen = initial(real_params())
    after, metrics = jax.jit(make(changed(epochs=2), models=REAL))(before, (prompts(), text()), KEY, frozen)
    return before, after, frozen, metrics


class TestFirstIteration:
    @pytest.mark.parametrize(
        ("temperature", "shape"),
        [(1.0, {}), (0.7, {"dropout": 0.4, "local_window": 3})],
        ids=["plain", "temperature, dropout and banded attention"],
    )
    def test_the_ratio_is_one_and_the_kl_zero(self, temperature, shape):
        config = dataclasses.replace(fakes.CONFIG, **shape)
        models = LanguageModel(config), ScalarModel(config)
        state, frozen = initial(real_params())
        step = jax.jit(make(changed(temperature=temperature), models=models))
        state, metrics = step(state, (prompts(), None), KEY, frozen)
        found = numbers(metrics)
        assert set(invariants.INVARIANTS) - {"frozen_changes"} <= set(found)
        assert invariants.violations(found, "float32") == []
        assert 0 < found["sampler_deviation"] < 1e-5  # measured, so not exactly 0
        assert found["first_ratio_deviation"] < 1e-5
        assert abs(found["kl"]) < 1e-5 and found["max_abs_kl"] < 1e-5
        # Later minibatches are off the policy that sampled, later iterations off the reference.
        assert found["max_ratio_deviation"] > 1e-4
        found = numbers(step(state, (prompts(1), None), KEY, frozen)[1])
        assert found["first_ratio_deviation"] < 1e-5
        assert found["max_abs_kl"] > 1e-4

    def test_each_epoch_updates_both_networks_once_per_minibatch(self, ptx):
        _, after, _, metrics = ptx
        assert int(after.step) == 1
        assert int(after.policy.step) == int(after.value.step) == 2 * MINIBATCHES
        assert numbers(metrics)["gradient_norm"] > 0
        assert float(metrics["gradient_norm"].weight) == 2 * MINIBATCHES

    def test_every_prompt_is_answered_and_every_token_used_once_per_epoch(self, ptx):
        *_, metrics = ptx
        tokens = float(metrics["response_tokens"].total)
        assert float(metrics["reward"].weight) == float(metrics["kl"].weight) == BATCH
        assert BATCH <= tokens <= BATCH * R
        prompted = np.sum(prompts().segments)
        assert float(metrics["padding"].total) == BATCH * (P + R) - tokens - prompted
        assert float(metrics["policy_loss"].weight) == float(metrics["value_loss"].weight) == 2 * tokens
        assert float(metrics["ptx_loss"].weight) == 2 * text().weights.sum()

    def test_the_average_is_updated_once_per_iteration(self, ptx):
        before, after, *_ = ptx
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, before.policy.ema, after.policy.params)
        assert_close(after.policy.ema, expected, rtol=1e-5, atol=1e-6)
        assert distance(after.policy.params, before.policy.params) > 1e-3
        assert distance(after.value.params, before.value.params) > 1e-3
        assert after.value.ema is None


@functools.cache
def on_one_device(with_text, coefficient=2.0):
    """Runs two iterations: returns (state, metrics of each)."""
    config = changed(epochs=2, ptx_coefficient=coefficient)
    return two_iterations(jax.jit(make(config)), text() if with_text else None)


def two_iterations(step, windows):
    state, frozen = initial(fake_params())
    copies = jax.tree.map(np.array, frozen)
    metrics = []
    for seed in range(2):
        state, found = step(state, (prompts(seed), windows), KEY, frozen)
        metrics.append(numbers(found))
    jax.tree.map(np.testing.assert_array_equal, frozen, copies)  # frozen weights stay
    return state, metrics


def assert_same_metrics(found, expected):
    for here, there in zip(found, expected, strict=True):
        # Counts of the sampled tokens, which would differ if one token differed.
        for name in ("response_tokens", "missing_eos"):
            assert here[name] == there[name]
        # Under pmap each device decodes until its own rows are done.
        names = [name for name in there if name != "rollout_padding"]
        np.testing.assert_allclose(
            [here[name] for name in names], [there[name] for name in names], rtol=2e-3, atol=1e-5
        )


def test_without_text_it_is_ppo_ptx_with_coefficient_zero():
    (plain, metrics), (zero, zero_metrics), (mixed, _) = (
        on_one_device(False),
        on_one_device(True, coefficient=0.0),
        on_one_device(True),
    )
    assert_close((plain.policy, plain.value), (zero.policy, zero.value), rtol=1e-5, atol=1e-6)
    assert distance(plain.policy.params, mixed.policy.params) > 1e-3
    assert set(zero_metrics[0]) - set(metrics[0]) == {"ptx_loss"}
    assert_same_metrics(zero_metrics, metrics)


def test_a_batch_sampled_in_parts_has_the_same_tokens():
    (policy, _), sampled = fake_params(), {}
    for parts in (1, 4):
        sampled[parts], _ = jax.jit(make(changed(rollout_parts=parts)).rollout)(policy, prompts(), KEY)
    np.testing.assert_array_equal(sampled[1].tokens, sampled[4].tokens)
    np.testing.assert_array_equal(sampled[1].response_mask, sampled[4].response_mask)
    assert_close(sampled[1].log_probs, sampled[4].log_probs, rtol=1e-5, atol=1e-6)


def test_a_minibatch_read_in_parts_makes_the_same_updates():
    whole, expected = on_one_device(True)
    parts, found = two_iterations(jax.jit(make(changed(epochs=2, microbatches=2))), text())
    assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert_same_metrics(found, expected)
    assert found[0]["first_ratio_deviation"] < 1e-5


@pytest.mark.parametrize(("mode", "with_text"), [("pmap", False), ("pmap", True), ("jit", True)])
def test_eight_devices_equal_one(mode, with_text):
    assert jax.device_count() == 8
    config = ml_collections.ConfigDict(PARALLEL | {"mode": mode})
    iterate = make(changed(epochs=2), axis_name=parallel.axis_name(mode))
    with parallel.on_mesh(config):
        eight, found = two_iterations(parallel.compile_step(iterate, config), text() if with_text else None)
    one, expected = on_one_device(with_text)
    assert found[0].keys() == expected[0].keys()
    assert_same_metrics(found, expected)
    assert_close(eight, one, rtol=1e-4, atol=1e-5)
    assert int(eight.step) == 2


class Recorder:
    """An optimizer that changes nothing and records the norms of its gradients."""

    def __init__(self, updates):
        self.transformation = optax.GradientTransformation(
            lambda params: (jnp.zeros(updates), jnp.zeros((), jnp.int32)), self.update
        )

    @staticmethod
    def update(gradients, state, params):
        del params
        norms, count = state
        return jax.tree.map(jnp.zeros_like, gradients), (norms.at[count].set(optax.tree.norm(gradients)), count + 1)


class TestMinibatches:
    optimizers = Recorder(2 * MINIBATCHES).transformation, optax.set_to_zero()
    step = staticmethod(jax.jit(make(changed(epochs=2), optimizers=optimizers)))

    def run(self, key=KEY, start=None):
        """Returns (state, metrics, gradient norms [epochs, minibatches]). The norms identify a minibatch's episodes."""
        state, frozen = initial(fake_params(), self.optimizers)
        if start is not None:
            state = state.replace(step=start.step)
        state, metrics = self.step(state, (prompts(), None), key, frozen)
        return state, metrics, np.asarray(state.policy.opt_state[0]).reshape(2, MINIBATCHES)

    def test_each_epoch_has_a_new_order(self):
        first, second = self.run()[2]
        assert np.all(first > 0) and np.all(second > 0)
        assert np.abs(np.sort(first) - np.sort(second)).max() > 1e-3

    def test_the_order_comes_from_the_key(self):
        norms = self.run()[2]
        np.testing.assert_array_equal(norms, self.run()[2])
        assert np.abs(norms - self.run(jax.random.key(4))[2]).max() > 1e-3

    def test_each_iteration_draws_new_samples_from_the_same_key(self):
        state, metrics, _ = self.run()
        _, later, _ = self.run(start=state)
        assert float(metrics["entropy"].total) != float(later["entropy"].total)


class TestRewards:
    """Tests with fake reward models, whose scores are known."""

    @staticmethod
    def first_metrics(of_tokens, scalar, **keys):
        config = changed(kl_coefficient=0.0, **keys)
        state, frozen = initial(fake_params(scalar=scalar))
        eos_id = keys.pop("eos_id", EOS)
        step = jax.jit(make(config, models=(Bigram(), PlantedScalar(of_tokens)), eos_id=eos_id))
        return numbers(step(state, (prompts(), None), KEY, frozen)[1])

    def test_scores_keep_their_fractions(self):
        found = self.first_metrics(constant, weights(0.73), missing_eos_penalty=0.0)
        np.testing.assert_allclose(found["reward"], 0.73, rtol=1e-6)

    def test_a_response_without_eos_pays_the_penalty(self):
        found = self.first_metrics(constant, weights(2.0, 0.0), missing_eos_penalty=0.25)
        assert 0 < found["missing_eos"] < 1
        np.testing.assert_allclose(found["shaped_reward"], 2 - 0.25 * found["missing_eos"], rtol=1e-6)
        np.testing.assert_allclose(found["reward"], 2, rtol=1e-6)  # as in the validation

    def test_the_score_is_at_the_last_token_with_nothing_after_it(self):
        # At lambda = 1 a return is the discounted sum of the rewards that follow, whatever the values are.
        found = self.first_metrics(
            constant, weights(0.6), missing_eos_penalty=0.0, gae_lambda=1.0, discount=0.5, eos_id=-1
        )
        assert found["missing_eos"] == 1 and found["response_tokens"] == R
        np.testing.assert_allclose(found["return"], 0.6 * np.mean([0.5**k for k in range(R)]), rtol=1e-5)
        np.testing.assert_allclose(found["value"], 0.6, rtol=1e-5)

    def test_the_kl_penalty_enters_the_returns(self):
        # A reference other than the policy: the mean return of the first tokens is reward - beta KL.
        state, frozen = initial(fake_params(scalar=weights(0.0)))
        frozen = frozen.replace(reference=fake_params(seed=5)[0])
        config = changed(kl_coefficient=0.5, gae_lambda=1.0, discount=0.0, missing_eos_penalty=0.0)
        step = jax.jit(make(config, models=(Bigram(), PlantedScalar(constant))))
        found = numbers(step(state, (prompts(), None), KEY, frozen)[1])
        # Without discounting, each token's return is its own reward; they add up to the episode's.
        total = found["return"] * found["response_tokens"]
        assert abs(found["kl"]) > 0.1
        np.testing.assert_allclose(total, -0.5 * found["kl"], rtol=1e-4)
        assert found["kl_k2"] > 0 and found["kl_k3"] > 0
        assert 0 < found["kl_standard_error"] < found["max_abs_kl"]

    @pytest.mark.slow
    def test_whitened_rewards_keep_their_mean_and_leave_the_check_of_their_placement_alone(self):
        keys = {"gae_lambda": 1.0, "discount": 0.0, "whiten_rewards": True, "missing_eos_penalty": 0.0}
        plain, found = (
            self.first_metrics(uneven, weights(3.0), **{**keys, "whiten_rewards": w}) for w in (False, True)
        )
        np.testing.assert_allclose(found["return"], plain["return"], rtol=1e-4)
        assert found["reward_placement_error"] < 1e-5
        assert found["value_loss"] != pytest.approx(plain["value_loss"], rel=0.1)

    def test_the_kl_coefficient_moves_towards_its_target(self):
        state, frozen = initial(fake_params(scalar=weights(0.0)))
        state = state.replace(kl_coefficient=jnp.float32(0.5))
        frozen = frozen.replace(reference=fake_params(seed=5)[0])
        config = changed(kl_target=1e-3, kl_horizon=4 * BATCH)  # far below the KL: e is clipped to 0.2
        iterate = make(config, models=(Bigram(), PlantedScalar(constant)))
        kept, _ = iterate._adapt_kl_coefficient(state, Mean(jnp.float32(jnp.nan), jnp.float32(1.0)))
        assert float(kept.kl_coefficient) == 0.5  # after rewards that are not numbers
        state, metrics = jax.jit(iterate)(state, (prompts(), None), KEY, frozen)
        found = numbers(metrics)
        assert found["kl"] > 1e-3 and found["kl_coefficient"] == pytest.approx(0.5)
        assert float(state.kl_coefficient) == pytest.approx(0.5 * (1 + 0.2 / 4))
        # The penalty is that of the state's coefficient: its check finds the rewards where they belong.
        assert found["reward_placement_error"] < 1e-4

    @pytest.mark.slow
    def test_an_entropy_bonus_raises_the_entropy(self):
        def entropy(bonus):
            state, frozen = initial(fake_params(scalar=weights(0.0)))
            config = changed(entropy_coefficient=bonus, missing_eos_penalty=0.0, kl_coefficient=0.0)
            step = jax.jit(make(config, models=(Bigram(), PlantedScalar(constant))))
            for seed in range(3):
                state, metrics = step(state, (prompts(seed), None), KEY, frozen)
            return numbers(metrics)

        without, found = entropy(0.0), entropy(5.0)
        assert found["entropy"] > without["entropy"] + 0.01
        assert "update_entropy" in found and "update_entropy" not in without


def test_the_policy_learns_what_is_rewarded():
    """Rewards each token 5: within twenty iterations, most tokens are 5."""

    def count(tokens, segments):
        return jnp.cumsum((tokens == 5) & (segments > 0), axis=1).astype(jnp.float32)

    optimizers = optax.adam(5e-2), optax.adam(3e-2)
    state, frozen = initial(fake_params(scalar=weights(1.0)), optimizers)
    config = changed(missing_eos_penalty=0.0, epochs=2)
    step = jax.jit(make(config, models=(Bigram(), PlantedScalar(count)), optimizers=optimizers), donate_argnums=0)
    curve = []
    for seed in range(20):
        state, metrics = step(state, (prompts(seed), None), KEY, frozen)
        curve.append(numbers(metrics))
    rewards = [found["reward"] for found in curve]
    assert np.mean(rewards[:3]) < 1 < 2.5 < np.mean(rewards[-3:])
    assert curve[-1]["kl"] > 0.5
    assert all(found["first_ratio_deviation"] < 1e-5 for found in curve)
