"""PPO whose rollouts are sampled with weights in int8: importance weights, and invariants that still find a bug."""

import dataclasses

import jax
import numpy as np
import pytest

from instructjax.errors import InvariantError
from instructjax.models import transformer
from instructjax.models.transformer import LanguageModel
from instructjax.runs import invariants
from instructjax.training.metrics import compute
from tests import fakes
from tests.algorithms.test_ppo import (
    FAKE,
    KEY,
    Bigram,
    PlantedScalar,
    changed,
    fake_params,
    initial,
    make,
    prompts,
    uneven,
)  # fmt: skip

INT8 = dataclasses.replace(fakes.CONFIG, decoding_dtype="int8")


def observed(models, params):
    """Returns the episodes of a rollout, the experience and the metrics."""
    iterate = make(changed(minibatch_size=32), models=models)
    state, frozen = initial(params)

    @jax.jit
    def run(state, frozen):
        episodes, _ = iterate.sample(state, prompts(), KEY)
        return episodes, *iterate.observe(state, frozen, episodes)

    episodes, experience, metrics = run(state, frozen)
    return episodes, experience, compute([jax.device_get(metrics)])


class Drifted(Bigram):
    """A fake model whose sampler has other weights than its training forward."""

    def decoding_params(self, params):
        return jax.tree.map(lambda x: 1.5 * x, params)


def test_advantages_are_multiplied_by_truncated_importance_weights():
    (episodes, weighted, _), (_, plain, _) = (
        observed((Drifted(config), FAKE[1]), fake_params()) for config in (INT8, fakes.CONFIG)
    )
    mask = np.asarray(episodes.response_mask) > 0
    ratio = np.exp(np.asarray(weighted.log_probs) - np.asarray(episodes.log_probs))
    assert (ratio[mask] > 2).any() and (ratio[mask] < 1).any()
    expected = plain.advantages * np.where(mask, np.minimum(ratio, 2), 0)
    np.testing.assert_allclose(weighted.advantages, expected, atol=1e-5)
    np.testing.assert_array_equal(weighted.returns, plain.returns)


def wrong_scale(quantize, factor):
    def wrong(*given, **keys):
        found = quantize(*given, **keys)
        return found.replace(scale=factor * found.scale)

    return wrong


@pytest.mark.parametrize("dtype", ["int8", "int8xint8"])
def test_the_invariants_of_the_sampler_allow_int8_and_find_a_wrong_scale(monkeypatch, dtype):
    model = LanguageModel(dataclasses.replace(INT8, decoding_dtype=dtype))
    models, params = (model, PlantedScalar(uneven)), (fakes.params(model, noise=0.3), fake_params()[1])
    *_, sound = observed(models, params)
    limits = {"precision": "float32", "sampler": "low", "action": "stop"}
    invariants.enforce("ppo, step 1", sound, **limits)
    assert 1e-8 < sound["sampler_kl"] < 1e-3
    monkeypatch.setattr(transformer, "quantize", wrong_scale(transformer.quantize, 1.5))
    *_, wrong = observed(models, params)
    with pytest.raises(InvariantError, match="sampler_kl: expected at most 0.01, found"):
        invariants.enforce("ppo, step 1", wrong, **limits)
