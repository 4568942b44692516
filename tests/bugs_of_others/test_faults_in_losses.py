"""Faults of others in masks, means and whitening, caught by the laws of losses."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.testing import laws
from instructjax.training import metrics as metrics_lib
from instructjax.training import step
from tests import oracles as loops
from tests.algorithms.test_ppo_invariants import planted

B, R, V, CLIP = 4, 5, 8, 0.2
RNG = np.random.default_rng(0)
LOG_PROBS, OLD, ADVANTAGES = RNG.normal(size=(3, B, R)) * [[[0.3]], [[0.3]], [[1.0]]]
MASK = (np.arange(R) < np.array([5, 2, 1, 3])[:, None]).astype(np.float64)
MINIBATCH = LOG_PROBS, OLD, ADVANTAGES, MASK
PARAMS = {"log_probs": RNG.normal(size=V)}
BATCH = {"tokens": RNG.integers(0, V, size=(B, R)), "old": OLD, "advantages": ADVANTAGES, "mask": MASK}


@contextlib.contextmanager
def broken(law):
    with pytest.raises(AssertionError, match=f"^{law.__name__}: "):
        yield


# Laws compile a function once. So each call gets a new one, which looks up the equations as they are then.


def policy_loss():
    return lambda *minibatch: losses.policy_loss(*minibatch, CLIP)[0]


def whiten():
    return lambda x, mask, axis_name=None: losses.whiten(x, mask, axis_name)


def gae():
    return lambda rewards, values, mask: losses.gae(rewards, values, mask, 1.0, 0.95)


def objective():
    """Returns PPO's loss of a policy whose log-probabilities are its weights, one per token id."""

    def loss(params, batch, key):
        log_probs = params["log_probs"][batch["tokens"]]
        return losses.policy_loss(log_probs, batch["old"], batch["advantages"], batch["mask"], CLIP)[0], {}

    return loss


def loop(*minibatch):
    total, _, _, tokens, _ = loops.policy_loss(*minibatch, CLIP)
    return total, tokens


def test_advantages_where_the_mask_belongs(monkeypatch):
    def swapped(policy_loss):
        return lambda log_probs, old, advantages, mask, clip: policy_loss(log_probs, old, advantages, advantages, clip)

    laws.mask_is_respected(policy_loss(), MINIBATCH)
    planted(monkeypatch, losses, "policy_loss", swapped)
    with broken(laws.mask_is_respected):
        laws.mask_is_respected(policy_loss(), MINIBATCH)


def test_a_mean_over_padding(monkeypatch):
    """Divides by the number of columns, so that the gradient shrinks with the share of padding."""

    def everywhere(masked_sum):
        return lambda x, mask: (masked_sum(x, mask)[0], masked_sum(mask, jnp.ones_like(mask))[1])

    laws.mask_is_respected(policy_loss(), MINIBATCH)
    planted(monkeypatch, losses, "masked_sum", everywhere)
    with broken(laws.mask_is_respected):
        laws.mask_is_respected(policy_loss(), MINIBATCH)


def test_a_mean_of_the_means_of_responses(monkeypatch):
    """Averages each response first, so that a token of a long response counts less."""

    def of_responses(_):
        def pair(x, mask):
            mask = jnp.asarray(mask)
            tokens = mask.sum(axis=1)
            means = jnp.where(mask > 0, x, 0).sum(axis=1) / jnp.maximum(tokens, 1)
            return means.sum(), jnp.sum(jnp.sign(tokens))

        return pair

    laws.agrees_with(policy_loss(), loop, MINIBATCH)
    planted(monkeypatch, losses, "masked_sum", of_responses)
    with broken(laws.agrees_with):
        laws.agrees_with(policy_loss(), loop, MINIBATCH)


def test_a_mean_of_the_means_of_devices(monkeypatch):
    def of_devices(summed_gradient):
        def gradient(loss, params, batch, key, microbatches, axis_name, is_empty):
            (total, weight), metrics = summed_gradient(loss, params, batch, key, microbatches, None, is_empty)
            mean = losses.mean(total, weight)
            mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
            return (mean, jnp.ones_like(weight)), metrics_lib.reduce(metrics, axis_name)

        return gradient

    laws.microbatches_agree(objective(), PARAMS, BATCH)
    planted(monkeypatch, step, "_summed_gradient", of_devices)
    laws.microbatches_agree(objective(), PARAMS, BATCH, [(2, 1)])
    with broken(laws.microbatches_agree):
        laws.microbatches_agree(objective(), PARAMS, BATCH, [(1, 2)])


def test_accumulated_gradients_divided_by_the_number_of_microbatches(monkeypatch):
    def of_microbatches(summed_gradient):
        def gradient(loss, *rest):
            def mean(params, batch, key):
                (total, weight), metrics = loss(params, batch, key)
                return (total / weight, jnp.ones_like(weight)), metrics

            return summed_gradient(mean, *rest)

        return gradient

    planted(monkeypatch, step, "_summed_gradient", of_microbatches)
    with broken(laws.microbatches_agree):
        laws.microbatches_agree(objective(), PARAMS, BATCH, [(2, 1)])


def test_whitening_with_the_mean_of_padding(monkeypatch):
    def unmasked(_):
        def moments(x, mask, axis_name=None):
            average = jnp.mean(x)
            return average, losses.mean(*losses.masked_sum(jnp.square(x - average), mask))

        return moments

    laws.mask_is_respected(whiten(), (ADVANTAGES, MASK))
    planted(monkeypatch, losses, "masked_moments", unmasked)
    with broken(laws.mask_is_respected):
        laws.mask_is_respected(whiten(), (ADVANTAGES, MASK))


def test_whitening_on_each_device(monkeypatch):
    laws.devices_agree(whiten(), (ADVANTAGES, MASK))
    planted(monkeypatch, losses, "masked_moments", lambda moments: lambda x, mask, axis_name=None: moments(x, mask))
    with broken(laws.devices_agree):
        laws.devices_agree(whiten(), (ADVANTAGES, MASK))


def test_returns_that_continue_into_padding(monkeypatch):
    """Takes the critic's output after EOS for the value of a state that follows."""

    def continued(gae):
        def estimate(rewards, values, mask, discount, gae_lambda):
            everywhere = gae(rewards, values, jnp.ones_like(mask), discount, gae_lambda)
            return tuple(jnp.where(mask > 0, x, 0) for x in everywhere)

        return estimate

    laws.mask_is_respected(gae(), (ADVANTAGES, LOG_PROBS, MASK))
    planted(monkeypatch, losses, "gae", continued)
    with broken(laws.mask_is_respected):
        laws.mask_is_respected(gae(), (ADVANTAGES, LOG_PROBS, MASK))
