"""Choices that do not change losses and gradients of PPO's networks, in float64; see test_loss_laws.py."""

import functools

import jax
import numpy as np
import pytest

from instructjax import losses
from instructjax.algorithms import ppo_metrics
from instructjax.batch import Episodes
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.rollout import episode, packing, sampling
from instructjax.rollout.episode import Experience
from instructjax.testing import laws
from tests import fakes

CONFIG, PAD = fakes.float64_config(), 0
POLICY, SCALAR = fakes.float64_params(LanguageModel), fakes.float64_params(ScalarModel, seed=1)
TEXTS = [np.random.default_rng(seed).integers(2, 16, size=size) for seed, size in enumerate((9, 4, 6, 2))]
RNG = np.random.default_rng(0)
RESPONSES = [RNG.integers(2, 16, size=size) for size in (3, 5, 1, 4)]
NOISE = RNG.normal(size=(4, 5, 4))


def batch(prompt_width=9, response_width=5, pad=PAD):
    """Draws episodes, with prompts padded on the left and responses on the right, and PPO's arrays for their tokens."""
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


@functools.cache
def loss_of(make, config=CONFIG):
    return make(config)


@pytest.mark.parametrize(("make", "params"), [(policy_loss, POLICY), (value_loss, SCALAR)], ids=["policy", "value"])
class Test:
    @pytest.mark.parametrize("pad", [PAD, 7])
    def test_padding(self, make, params, pad):
        """Adds padding on both sides, with any token."""
        laws.losses_agree(loss_of(make), loss_of(make), params, batch(14, 8, pad), batch())

    def test_packing(self, make, params):
        """Lets two episodes share a row."""
        with jax.enable_x64(True):
            episodes, noise = batch()
            columns = [noise[..., i] for i in range(4)]
            padded = Experience(episodes, *columns[:3], scores=None, advantages=columns[3], returns=None)
            rows = packing.plan(episodes.segments, 1).experience(padded)
            packed = rows.log_probs, rows.ref_log_probs, rows.values, rows.advantages
            batches = (rows.episodes, np.stack(packed, axis=-1)), (episodes, noise)
        assert (rows.episodes.segments.max(axis=1) > 0).sum() == 3
        laws.losses_agree(loss_of(make), loss_of(make), params, *batches)

    def test_order(self, make, params):
        laws.permutation_of_rows(loss_of(make), params, batch())

    def test_microbatches(self, make, params):
        laws.microbatches_agree(loss_of(make), params, batch(), [(2, 1), (1, 2)])

    def test_minibatches_add_up_to_the_whole(self, make, params):
        """Compares sums over two minibatches with unequal numbers of tokens, divided once."""
        parts = [jax.tree.map(lambda x, i=i: x[i::2], batch()) for i in (0, 1)]
        assert parts[0][0].response_mask.sum() != parts[1][0].response_mask.sum()
        laws.parts_add_up(loss_of(make), params, parts, batch())

    @pytest.mark.parametrize("change", fakes.LAYERS, ids=fakes.LAYER_NAMES)
    def test_layers(self, make, params, change):
        laws.losses_agree(loss_of(make, fakes.float64_config(**change)), loss_of(make), params, batch())
