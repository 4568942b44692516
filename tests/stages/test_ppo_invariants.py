"""Bugs planted into a real iteration, and the line that a run would stop with."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from instructjax import losses
from instructjax.batch import PromptBatch
from instructjax.errors import InvariantError
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import episode, sampling
from instructjax.stages import ppo_iteration
from instructjax.stages.ppo_iteration import Frozen, PPOState
from instructjax.training import invariants, loop
from instructjax.training import state as train_state
from tests import tiny_models
from tests.stages.test_ppo_iteration import BATCH, EOS, FAKE, PAD, PPO, P, R, fake_params

SGD = optax.sgd(0.05)
MODEL, SCALAR = LanguageModel(tiny_models.CONFIG), ScalarModel(tiny_models.CONFIG)
POLICY = tiny_models.params(MODEL, noise=0.15)
REWARD = tiny_models.params(SCALAR, seed=7, noise=0.15)


def iteration(model=MODEL, scalar=SCALAR, *, policy=POLICY, reference=None, reward=REWARD, seed=0):
    """The metrics of the first iteration, compiled anew, so that what is planted is in it."""
    reference = policy if reference is None else reference
    rng = np.random.default_rng(seed)
    segments = (np.arange(P) >= rng.integers(0, P, size=(BATCH, 1))).astype(np.int32)
    tokens = rng.integers(2, tiny_models.CONFIG.vocab_size, size=(BATCH, P)).astype(np.int32) * segments
    iterate = ppo_iteration.make_iteration(
        model, scalar, SGD, SGD, ml_collections.ConfigDict(PPO), max_response=R, eos_id=EOS, pad_id=PAD
    )
    state = PPOState(
        step=jnp.zeros((), jnp.int32),
        policy=train_state.create_averaged(policy, SGD),
        value=train_state.create(reward, SGD),
    )
    batch = PromptBatch(tokens, segments, np.arange(BATCH, dtype=np.int32))
    frozen = Frozen(reference=reference, reward=reward)
    _, metrics = jax.jit(iterate)(state, (batch, None), jax.random.key(seed), frozen)
    return loop.reduce([jax.device_get(metrics)])


def quick(**keys):
    """With networks that stand for these and compile at once, for bugs outside of the network."""
    policy, reward = fake_params()
    return iteration(*FAKE, **{"policy": policy, "reward": reward, **keys})


def found(values):
    """The names of the invariants that do not hold, by the error that a run stops with."""
    with pytest.raises(InvariantError) as error:
        invariants.enforce("ppo, step 1", values, dtype="float32", action="stop")
    assert "\n" not in str(error.value)
    return {line.partition(": ")[2].partition(":")[0] for line in str(error.value).split("; ppo")}


def replaced_rollout(monkeypatch, change):
    """Samples with `change(params)` and returns `change(episodes)`, by the type of what it is given."""
    sample = sampling.sample

    def planted(model, params, *rest, **keys):
        return change(sample(model, change(params), *rest, **keys))

    monkeypatch.setattr(sampling, "sample", planted)


def episodes_only(change):
    return lambda x: x if isinstance(x, dict) else change(x)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_iteration_has_nothing_to_report(seed):
    values = iteration(seed=seed)
    assert set(invariants.INVARIANTS) - {"frozen_changes"} <= set(values)
    assert invariants.violations(values, "float32") == []
    assert values["misplaced"] == 0 and values["sampler_deviation"] > 0  # measured, not given


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_reward_that_is_read_at_another_token(monkeypatch, shift):
    last_token = episode.last_token
    monkeypatch.setattr(episode, "last_token", lambda segments: jnp.clip(last_token(segments) + shift, 0, P + R - 1))
    assert "misplaced" in found(quick())


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_reward_that_is_put_on_another_token(monkeypatch, shift):
    kl_rewards = losses.kl_rewards
    monkeypatch.setattr(losses, "kl_rewards", lambda *given: jnp.roll(kl_rewards(*given), shift, axis=1))
    assert found(quick()) == {"displaced_score"}


def test_a_reward_without_its_penalty_on_one_token(monkeypatch):
    kl_rewards = losses.kl_rewards
    monkeypatch.setattr(losses, "kl_rewards", lambda *given: kl_rewards(*given).at[:, 0].set(0.0))
    assert found(quick(reference=fake_params(seed=5)[0])) == {"displaced_score", "initial_kl"}


def test_wrong_positions(monkeypatch):
    replaced_rollout(monkeypatch, episodes_only(lambda episodes: episodes.replace(positions=episodes.positions + 1)))
    assert {"misplaced", "sampler_deviation"} <= found(iteration())


def test_a_mask_that_goes_on_after_the_end(monkeypatch):
    def longer(episodes):
        mask = episodes.response_mask
        return episodes.replace(response_mask=jnp.maximum(mask, jnp.roll(mask, 1, axis=1).at[:, 0].set(1.0)))

    replaced_rollout(monkeypatch, episodes_only(longer))
    assert "misplaced" in found(quick())


def test_a_sampler_with_other_weights(monkeypatch):
    replaced_rollout(monkeypatch, lambda x: jax.tree.map(lambda leaf: 1.05 * leaf, x) if isinstance(x, dict) else x)
    assert found(iteration()) == {"sampler_deviation"}


def test_a_sampler_with_another_temperature(monkeypatch):
    categorical = sampling.categorical
    monkeypatch.setattr(sampling, "categorical", lambda keys, temperature: categorical(keys, 0.9 * temperature))
    assert found(quick()) == {"sampler_deviation"}


def test_stale_log_probabilities_in_the_update(monkeypatch):
    gather_rows = ppo_iteration.gather_rows

    def stale(experience, axis_name):
        experience = gather_rows(experience, axis_name)
        return experience.replace(log_probs=experience.log_probs * 1.01)

    monkeypatch.setattr(ppo_iteration, "gather_rows", stale)
    assert found(quick()) == {"first_ratio_deviation"}


def test_a_reference_that_is_not_the_initial_policy():
    assert found(quick(reference=fake_params(seed=5)[0])) == {"initial_kl"}


def test_integer_rewards():
    class Rounded:
        def apply(self, *given, **keys):
            return jnp.round(FAKE[1].apply(*given, **keys)).astype(jnp.int32)

    with pytest.raises(InvariantError, match="scores: expected floating-point numbers, found int32"):
        iteration(FAKE[0], Rounded(), policy=fake_params()[0], reward=fake_params()[1])


def test_nan_in_a_network():
    reward = fake_params()[1]
    assert "reward" in found(quick(reward={**reward, "shift": jnp.float32(jnp.nan)}))


def test_a_warning_goes_on(capsys):
    invariants.enforce("ppo, step 3", {"misplaced": 2.0, "reward": 0.5}, dtype="float32", action="warn")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: ppo, step 3: misplaced: expected at most 0, found 2: masks, segments or positions")


def test_bfloat16_has_limits_of_its_own():
    values = {"sampler_deviation": 0.05}
    assert invariants.violations(values, "bfloat16") == [] != invariants.violations(values, "float32")
