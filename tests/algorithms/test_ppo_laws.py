"""What changes no loss and no gradient of PPO's policy and value network, in float64; see training/test_invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import losses
from instructjax.algorithms import ppo_metrics
from instructjax.batch import Episodes
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import episode, sampling
from tests.float64_gradients import (
    CONFIG,
    LAYERS,
    PAD,
    POLICY,
    SCALAR,
    TEXTS,
    assert_same,
    changed,
    divided,
    mean,
    sums,
)

RNG = np.random.default_rng(0)
RESPONSES = [RNG.integers(2, 16, size=size) for size in (3, 5, 1, 4)]
NOISE = RNG.normal(size=(4, 5, 4))


def batch(prompt_width=9, response_width=5, pad=PAD):
    """Episodes, prompts padded on the left and responses on the right, and what else PPO knows of their tokens."""
    tokens = np.full((4, prompt_width + response_width), pad)
    segments = np.zeros_like(tokens)
    for i, (prompt, response) in enumerate(zip(TEXTS, RESPONSES, strict=True)):
        inside = slice(prompt_width - len(prompt), prompt_width + len(response))
        tokens[i, inside], segments[i, inside] = [*prompt, *response], 1
    mask = segments[:, prompt_width:].astype(float)
    noise = np.pad(NOISE, [(0, 0), (0, response_width - 5), (0, 0)], constant_values=9.0)
    positions = np.asarray(sampling.positions_of(segments))
    return Episodes(tokens, segments, positions, mask, log_probs=np.zeros_like(mask), group=np.arange(4)), noise


def policy_loss(config):
    def loss(params, batch, key):
        episodes, noise = batch
        log_probs = episode.response_log_probs(LanguageModel(config), params, episodes)
        old = jax.lax.stop_gradient(log_probs) + 0.2 * noise[..., 0]
        pair, metrics = losses.policy_loss(log_probs, old, noise[..., 1], episodes.response_mask, 0.2)
        return pair, ppo_metrics.means(metrics)

    return loss


def value_loss(config):
    def loss(params, batch, key):
        episodes, noise = batch
        values = episode.response_values(ScalarModel(config), params, episodes)
        pair, metrics = losses.value_loss(values, noise[..., 2], noise[..., 3], episodes.response_mask, 0.2)
        return pair, ppo_metrics.means(metrics)

    return loss


@pytest.mark.parametrize(("make", "params"), [(policy_loss, POLICY), (value_loss, SCALAR)], ids=["policy", "value"])
class Test:
    @staticmethod
    @functools.cache
    def loss(make):
        return make(CONFIG)

    def mean(self, make, params, batch, **keys):
        return mean(self.loss(make), params, batch, **keys)

    @pytest.mark.parametrize("pad", [PAD, 7])
    def test_padding(self, make, params, pad):
        """More of it on both sides, of whatever token."""
        assert_same(self.mean(make, params, batch(14, 8, pad)), self.mean(make, params, batch()))

    def test_order(self, make, params):
        shuffled = jax.tree.map(lambda x: x[[3, 1, 0, 2]], batch())
        assert_same(self.mean(make, params, shuffled), self.mean(make, params, batch()))

    def test_microbatches(self, make, params):
        assert_same(self.mean(make, params, batch(), microbatches=2), self.mean(make, params, batch()))

    def test_minibatches_add_up_to_the_whole(self, make, params):
        """Sums over two minibatches of unequal numbers of tokens, divided once."""
        first, second = (sums(self.loss(make), params, jax.tree.map(lambda x, i=i: x[i::2], batch())) for i in (0, 1))
        assert float(first[0][1]) != float(second[0][1])
        with jax.enable_x64(True):
            total = jax.tree.map(jnp.add, first, second)
        assert_same(divided(total), self.mean(make, params, batch()))

    @pytest.mark.parametrize("change", LAYERS, ids=["unrolled", "rematerialised"])
    def test_layers(self, make, params, change):
        assert_same(mean(make(changed(**change)), params, batch()), self.mean(make, params, batch()))
