"""Faults of others in masks, log-probabilities, rewards and values, planted into a real iteration."""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import losses
from instructjax.models import unembedding
from instructjax.rollout import episode, sampling
from instructjax.runs import invariants
from tests.algorithms import test_ppo_invariants
from tests.algorithms.test_ppo import BATCH, EOS, P, PlantedScalar, changed, fake_params, uneven, weights
from tests.algorithms.test_ppo_invariants import MODELS, POLICY, Placed, after, found, iteration, planted, uncompiled
from tests.rollout import test_episode

SCORING = "response_log_probs", "response_log_probs_and_entropy"


def measured(models=MODELS, *, reference=None, **keys):
    """Returns the metrics of the first iteration, in a single minibatch to save time."""
    return iteration(uncompiled(models, changed(minibatch_size=BATCH, **keys)), reference=reference)


def sound(values):
    return invariants.violations(values, "float32") == []


def test_eos_masked_because_it_is_also_the_padding(monkeypatch):
    """Computes the mask from ids, where a response's EOS looks like the padding after it."""

    def masked(episodes):
        mask = episode.response_tokens(episodes) != EOS
        segments = jnp.concatenate([episodes.segments[:, :P], mask.astype(jnp.int32)], axis=1)
        return episodes.replace(response_mask=mask.astype(jnp.float32), segments=segments)

    monkeypatch.setattr(test_ppo_invariants, "PAD", EOS)
    assert sound(measured())
    planted(monkeypatch, sampling, "episodes", after(masked))
    assert "mask_mismatches" in found(measured())


def test_temperature_in_sampling_and_not_in_scoring(monkeypatch):
    def cold(read):
        return lambda model, params, episodes, temperature: read(model, params, episodes)

    assert sound(measured(temperature=0.7))
    for name in SCORING:
        planted(monkeypatch, episode, name, cold)
    assert found(measured(temperature=0.7)) == {"sampler_deviation", "sampler_kl"}


def test_temperature_in_the_policy_and_not_in_the_reference(monkeypatch):
    reference = jax.tree.map(jnp.copy, POLICY)

    def cold(read):
        def scored(model, params, episodes, temperature):
            return read(model, params, episodes, 1.0 if params is reference else temperature)

        return scored

    planted(monkeypatch, episode, "response_log_probs", cold)
    assert found(measured(temperature=0.7, reference=reference)) == {"initial_kl"}


def test_a_log_ratio_that_is_not_0_at_learning_rate_0(monkeypatch):
    """Computes the old log-probabilities with positions that count the left padding, as if none were passed."""

    def counted(read):
        def scored(model, params, episodes, temperature):
            columns = jnp.broadcast_to(jnp.arange(episodes.tokens.shape[1]), episodes.tokens.shape)
            return read(model, params, episodes.replace(positions=columns), temperature)

        return scored

    monkeypatch.setattr(test_ppo_invariants, "SGD", optax.sgd(0.0))
    values = measured(epochs=2)
    assert sound(values)
    assert values["max_ratio_deviation"] < 1e-5  # in the second epoch, too, because no update changes anything
    planted(monkeypatch, episode, "response_log_probs_and_entropy", counted)
    assert {"first_ratio_deviation", "first_approx_kl"} <= found(measured())


def test_a_sampler_that_drifts_at_learning_rate_0(monkeypatch):
    """Changes the weights in the sampler a little in every iteration, although no update changes the policy."""

    def drifting(sample):
        calls = itertools.count()

        def sampled(model, params, *rest, **keys):
            scale = 1.001 ** next(calls)
            return sample(model, jax.tree.map(lambda x: scale * x, params), *rest, **keys)

        return sampled

    monkeypatch.setattr(test_ppo_invariants, "SGD", optax.sgd(0.0))
    planted(monkeypatch, sampling, "sample", drifting)
    assert sound(measured())
    assert "sampler_kl" in found(measured())


@flax.struct.dataclass
class Dropped(Placed):
    """A policy whose dropout was left on: each forward pass draws other units."""

    rng: object = flax.struct.field(pytree_node=False, default_factory=lambda: np.random.default_rng(0))

    def apply(self, variables, tokens, *row, method=None, **keys):
        result = super().apply(variables, tokens, *row, method=method, **keys)
        if method == "unembed":
            return result
        hidden, cache = result
        return hidden * self.rng.binomial(1, 0.9, hidden.shape) / 0.9, cache


def test_dropout_between_the_old_and_the_new_log_probabilities():
    values = measured((Dropped(), MODELS[1]))
    assert {"first_ratio_deviation", "first_approx_kl", "initial_kl"} <= found(values)


def test_kl_summed_over_padding(monkeypatch):
    """Leaves log-probabilities of padding in place, and penalizes them."""

    def unmasked(read_logits):
        def read(model, params, hidden, tokens, mask, of_logits):
            return read_logits(model, params, hidden, tokens, jnp.ones_like(mask), of_logits)

        return read

    def penalized(kl_rewards):
        def rewards(scores, log_probs, ref_log_probs, mask, beta):
            padding = jnp.where(mask > 0, 0.0, beta * (ref_log_probs - log_probs))
            return kl_rewards(scores, log_probs, ref_log_probs, mask, beta) + padding

        return rewards

    reference = fake_params(seed=5)[0]
    planted(monkeypatch, unembedding, "read_logits", unmasked)
    assert found(measured(reference=reference)) == {"initial_kl"}  # the mask of the rewards alone is enough
    planted(monkeypatch, losses, "kl_rewards", penalized)
    assert found(measured(reference=reference)) == {"reward_placement_error", "initial_kl"}


def test_the_score_read_at_the_number_of_tokens(monkeypatch):
    """Takes the number of tokens for a column, although the prompt is padded on the left."""
    planted(monkeypatch, episode, "last_token", lambda _: lambda segments: (segments > 0).sum(axis=-1) - 1)
    assert found(measured()) == {"score_read_error"}


def test_values_read_after_each_token(monkeypatch):
    """Reads the value of a token in the token's own column, where the network has already seen it."""

    def late(model, params, episodes):
        values = model.apply({"params": params}, episodes.tokens, episodes.segments, episodes.positions)
        return values[:, -episodes.response_mask.shape[1] :] * episodes.response_mask

    monkeypatch.setattr(test_episode.fakes, "scalar_model", lambda: (PlantedScalar(uneven), weights(1.0)))
    test_episode.test_values_are_those_before_each_token()
    planted(monkeypatch, episode, "response_values", lambda _: late)
    assert sound(measured())  # no metric of a run shows it
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_episode.test_values_are_those_before_each_token()
