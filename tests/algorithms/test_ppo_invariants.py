"""Plants bugs into a real iteration, and expects the invariant that stops a run."""

import functools

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from instructjax import losses
from instructjax.algorithms import ppo
from instructjax.algorithms.advantages import gae
from instructjax.algorithms.ppo import Frozen, PPOState
from instructjax.batch import PromptBatch
from instructjax.data.pipeline import READ_OPTIONS
from instructjax.errors import InvariantError
from instructjax.rollout import episode, sampling
from instructjax.runs import checkpoint, invariants, loop, metrics_file
from instructjax.runs.schedule import Schedule
from instructjax.training import state as train_state
from instructjax.training.metrics import compute
from tests.algorithms.test_ppo import (
    BATCH,
    EOS,
    PAD,
    PPO,
    Bigram,
    P,
    PlantedScalar,
    R,
    changed,
    fake_params,
    uneven,
    weights,
)  # fmt: skip

SGD = optax.sgd(0.05)
POLICY, REWARD = fake_params()


@flax.struct.dataclass
class Placed(Bigram):
    """A Bigram that also sees positions."""

    def apply(self, variables, tokens, *row, method=None, **keys):
        if method == "unembed":
            return super().apply(variables, tokens, method=method)
        hidden, cache = super().apply(variables, tokens, *row, method="hidden")
        return hidden + jnp.sin(row[1])[..., None], cache


def outputs(tokens, segments):
    """Returns the outputs of a reward model, with arbitrary values on padding."""
    return jnp.where(segments > 0, uneven(tokens, segments), 3.0 + jnp.arange(tokens.shape[1]))


MODELS = Placed(), PlantedScalar(outputs)


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    segments = (np.arange(P) >= rng.integers(0, P, size=(BATCH, 1))).astype(np.int32)
    return PromptBatch(rng.integers(2, 16, size=(BATCH, P)).astype(np.int32) * segments, segments)


def initial(policy, value):
    return PPOState(
        step=jnp.zeros((), jnp.int32),
        policy=train_state.create_averaged(policy, SGD),
        value=train_state.create(value, SGD),
    )


def uncompiled(models=MODELS, config=PPO):
    """Runs operation by operation, so that nothing is compiled twice and planted bugs take effect.

    Even then, `jax.checkpoint` compiles each `cond` inside it, so it is left out.
    """
    policy, scalar = models
    learners = ppo.Learner(policy, SGD), ppo.Learner(scalar, SGD)
    estimator = gae(config.discount, config.gae_lambda)
    ends = {"max_response": R, "eos_id": EOS, "pad_id": PAD}
    iterate = ppo.make_iteration(learners[0], scalar, learners[1], estimator, config, **ends)

    def step(*given):
        with jax.disable_jit(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "checkpoint", lambda function: function)
            return iterate(*given)

    return step


def iteration(step=None, *, policy=POLICY, reference=None, reward=REWARD, value=None, seed=0):
    """Returns the metrics of the first iteration."""
    frozen = Frozen(policy if reference is None else reference, reward)
    state = initial(policy, reward if value is None else value)
    _, metrics = (step or uncompiled())(state, (prompts(seed), None), jax.random.key(seed), frozen)
    return compute([jax.device_get(metrics)])


def found(values, precision="float32"):
    """Returns the names of the metrics in the error that stops a run."""
    with pytest.raises(InvariantError) as error:
        invariants.enforce("ppo, step 1", values, precision=precision, action="stop")
    assert "\n" not in str(error.value)
    return {line.partition(": ")[2].partition(":")[0] for line in str(error.value).split("; ppo")}


def planted(monkeypatch, module, name, change):
    """Replaces a function of the package by `change(original)`."""
    monkeypatch.setattr(module, name, change(getattr(module, name)))


def after(change):
    """Composes the function with `change` of its result."""
    return lambda function: lambda *given, **keys: change(function(*given, **keys))


class TestSound:
    def test_without_a_planted_bug_nothing_is_reported(self):
        """Real networks have nothing to report either: see test_ppo.py."""
        for seed in range(3):
            values = iteration(seed=seed)
            assert set(invariants.INVARIANTS) - {"frozen_changes"} <= set(values)
            assert {"policy_loss", "value_loss", "gradient_norm", "value_gradient_norm", "reward"} <= set(values)
            assert invariants.violations(values, "float32") == []

    def test_only_the_first_iteration_is_compared_with_the_reference(self):
        state, frozen = initial(POLICY, REWARD), Frozen(fake_params(seed=5)[0], REWARD)
        _, metrics = uncompiled()(
            state.replace(step=jnp.ones((), jnp.int32)), (prompts(), None), jax.random.key(0), frozen
        )
        values = compute([jax.device_get(metrics)])
        assert values["max_abs_kl"] > 0.1 and "initial_kl" not in values
        assert invariants.violations(values, "float32") == []


class TestScore:
    @pytest.mark.parametrize("shift", [-1, 1])
    def test_found_at_another_token(self, monkeypatch, shift):
        planted(monkeypatch, episode, "last_token", after(lambda last: jnp.clip(last + shift, 0, P + R - 1)))
        assert found(iteration()) == {"score_read_error"}

    def test_read_at_another_token(self, monkeypatch):
        planted(monkeypatch, episode, "at_last_token", lambda _: lambda outputs, segments: outputs[:, -1])
        assert found(iteration()) == {"score_read_error"}

    @pytest.mark.parametrize("shift", [-1, 1])
    def test_put_on_another_token(self, monkeypatch, shift):
        planted(monkeypatch, losses, "kl_rewards", after(lambda rewards: jnp.roll(rewards, shift, axis=1)))
        assert found(iteration()) == {"reward_placement_error"}

    def test_without_the_penalty_on_one_token(self, monkeypatch):
        planted(monkeypatch, losses, "kl_rewards", after(lambda rewards: rewards.at[:, 0].set(0.0)))
        assert found(iteration(reference=fake_params(seed=5)[0])) == {"reward_placement_error", "initial_kl"}


class TestMasksAndPositions:
    def test_positions_from_one(self, monkeypatch):
        planted(monkeypatch, sampling, "positions_of", after(lambda positions: positions + 1))
        assert found(iteration()) == {"mask_mismatches"}

    @pytest.mark.parametrize("precision", ["float32", "low"])
    def test_other_positions_than_the_sampler_used(self, monkeypatch, precision):
        planted(
            monkeypatch,
            sampling,
            "episodes",
            after(lambda episodes: episodes.replace(positions=jnp.broadcast_to(jnp.arange(P + R), (BATCH, P + R)))),
        )
        assert found(iteration(), precision) == {"mask_mismatches", "sampler_deviation", "sampler_kl"}

    def test_a_mask_that_continues_after_the_end(self, monkeypatch):
        def longer(episodes):
            mask = episodes.response_mask
            return episodes.replace(response_mask=jnp.maximum(mask, jnp.roll(mask, 1, axis=1).at[:, 0].set(1.0)))

        planted(monkeypatch, sampling, "episodes", after(longer))
        assert "mask_mismatches" in found(iteration())

    @pytest.mark.parametrize("field", ["response_mask", "segments", "positions"])
    def test_others_in_the_update_than_in_the_rollout(self, monkeypatch, field):
        def other(experience):
            changed = jnp.roll(getattr(experience.episodes, field), 1, axis=0)
            return experience.replace(episodes=experience.episodes.replace(**{field: changed}))

        planted(monkeypatch, ppo.rows, "gather_rows", after(other))
        assert "mask_mismatches" in found(iteration())


class TestLogProbabilities:
    @pytest.mark.parametrize("precision", ["float32", "low"])
    def test_stale_weights_in_the_sampler(self, monkeypatch, precision):
        def stale(sample):
            return lambda model, params, *rest, **keys: sample(model, fake_params(seed=5)[0], *rest, **keys)

        planted(monkeypatch, sampling, "sample", stale)
        assert found(iteration(), precision) == {"sampler_deviation", "sampler_kl"}

    def test_weights_in_the_sampler_that_are_one_small_update_old(self, monkeypatch):
        def stale(sample):
            old = jax.tree.map(lambda x: 1.001 * x, POLICY)
            return lambda model, params, *rest, **keys: sample(model, old, *rest, **keys)

        planted(monkeypatch, sampling, "sample", stale)
        assert "sampler_kl" in found(iteration())

    @pytest.mark.parametrize("precision", ["float32", "low"])
    def test_another_temperature_in_the_sampler(self, monkeypatch, precision):
        planted(monkeypatch, sampling, "categorical", lambda draw: lambda temperature: draw(0.8))
        assert "sampler_kl" in found(iteration(), precision)

    @pytest.mark.parametrize(
        "change", [lambda log_probs: 1.01 * log_probs, lambda log_probs: jnp.roll(log_probs, 1, axis=0)]
    )
    def test_stale_or_mixed_up_in_the_update(self, monkeypatch, change):
        def stale(experience):
            return experience.replace(log_probs=change(experience.log_probs))

        planted(monkeypatch, ppo.rows, "gather_rows", after(stale))
        assert found(iteration()) == {"first_ratio_deviation", "first_approx_kl"}

    @pytest.mark.parametrize("precision", ["float32", "low"])
    def test_a_reference_that_is_not_the_initial_policy(self, precision):
        assert found(iteration(reference=fake_params(seed=5)[0]), precision) == {"initial_kl"}


class TestIntegers:
    """The error comes when the program is traced, before anything runs."""

    def test_scores(self):
        class Rounded:
            def apply(self, *given, **keys):
                return jnp.round(MODELS[1].apply(*given, **keys)).astype(jnp.int32)

        with pytest.raises(InvariantError, match="scores: expected floating-point numbers, found int32"):
            iteration(uncompiled((MODELS[0], Rounded())), value=REWARD)

    def test_scores_added_to_an_array_of_integers(self, monkeypatch):
        planted(monkeypatch, losses, "kl_rewards", after(lambda rewards: rewards.astype(jnp.int32)))
        with pytest.raises(InvariantError, match="rewards: expected floating-point numbers, found int32"):
            iteration()

    def test_advantages(self, monkeypatch):
        planted(monkeypatch, losses, "whiten", after(lambda advantages: jnp.sign(advantages).astype(jnp.int8)))
        with pytest.raises(InvariantError, match="advantages: expected floating-point numbers, found int8"):
            iteration()


class TestNumbersThatAreNone:
    @pytest.mark.parametrize(
        ("network", "metric"),
        [("policy", "entropy"), ("reference", "kl"), ("reward", "reward"), ("value", "value")],
    )
    def test_in_a_network(self, network, metric):
        good = dict(policy=POLICY, reference=POLICY, reward=REWARD, value=REWARD)
        bad = {name: leaf.at[(0,) * leaf.ndim].set(jnp.nan) for name, leaf in good[network].items()}
        assert metric in found(iteration(**{**good, network: bad}))

    @pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
    def test_in_an_advantage(self, monkeypatch, bad):
        planted(monkeypatch, losses, "whiten", after(lambda advantages: advantages.at[0, 0].set(bad)))
        values = iteration()
        # The episode is in one minibatch of an epoch: that update is skipped, and does not affect the weights.
        assert values["skipped"] == PPO.minibatch_size / PPO.batch_size and values["value_skipped"] == 0
        assert invariants.violations(values, "float32") == []

    def test_in_the_gradient_of_the_value_network(self):
        """The square root at 0 has a finite value and an infinite slope. The update is skipped and counted."""

        class Root:
            def apply(self, variables, tokens, segments, *_, **__):
                return jnp.sqrt(jnp.abs(tokens * variables["params"]["scale"]))

        step = uncompiled((MODELS[0], Root()), changed(minibatch_size=BATCH))
        values = iteration(step, reward=weights(0.0))
        assert (values["skipped"], values["value_skipped"]) == (0.0, 1.0)
        assert values["value_skipped_in_a_row"] == PPO.epochs and "value_gradient_norm" not in values


def test_a_run_stops_before_it_saves(tmp_path, monkeypatch):
    """Runs the loop with a real iteration whose sampler is wrong from the second iteration on."""
    categorical = sampling.categorical

    def step(state, *rest):
        temperature = 0.8 if int(state.step) >= 1 else 1.0
        monkeypatch.setattr(sampling, "categorical", lambda _: categorical(temperature))
        return uncompiled()(state, *rest)

    frozen = Frozen(POLICY, REWARD)
    with pytest.raises(InvariantError, match="^ppo, step 2: sampler_"):
        loop.run(
            step,
            initial(POLICY, REWARD),
            lambda: grain.MapDataset.source([(prompts(), None)]).repeat().to_iter_dataset(READ_OPTIONS),
            jax.random.key(0),
            directory=epath.Path(tmp_path) / "ppo",
            schedule=Schedule(steps=4, every=1, save_every=1, evaluate_every=1, keep=4),
            meta={},
            constants=(frozen,),
            callbacks=loop.Callbacks(
                check_metrics=functools.partial(invariants.enforce, precision="float32", action="stop")
            ),
        )
    with checkpoint.Checkpoints(tmp_path / "ppo" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [1]
    assert [line["step"] for line in metrics_file.read(tmp_path / "ppo" / "metrics.jsonl")] == [1]
