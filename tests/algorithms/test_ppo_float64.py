"""With JAX_ENABLE_X64=1, sampling and an iteration of PPO compute in float64 what they compute in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.transformer import LanguageModel, ScalarModel
from tests import fakes
from tests.algorithms import test_ppo as ppo

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # JAX warns of int64 that is written into int32


def iteration(dtype, refill, by_layer):
    shape = dataclasses.replace(fakes.CONFIG, dtype=dtype, param_dtype=dtype, cache_by_layer=by_layer)
    models = LanguageModel(shape), ScalarModel(shape)
    policy, scalar = jax.tree.map(lambda x: jnp.asarray(x, dtype), ppo.real_params())
    state, frozen = ppo.initial((policy, scalar))
    state = state.replace(value=ppo.train_state.create(jax.tree.map(jnp.copy, scalar), ppo.SGD))
    step = jax.jit(ppo.make(ppo.changed(rollout_refill=refill), models=models))
    state, metrics = step(state, (ppo.prompts(), ppo.text()), ppo.KEY, frozen)
    return state.policy.params, ppo.numbers(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(("refill", "by_layer"), [(0, True), (0, False), (4, False)])
def test_an_iteration_in_float64_is_that_in_float32(refill, by_layer):
    with jax.enable_x64(True):
        (narrow, found), (wide, expected) = (iteration(dtype, refill, by_layer) for dtype in ("float32", "float64"))
        assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float64)}
        ppo.assert_close(narrow, wide, rtol=0, atol=2e-6)
    assert found == pytest.approx(expected, abs=2e-4)  # rounding errors of advantages are of this size


@pytest.mark.parametrize("by_layer", [True, False])
def test_a_policy_answers_with_float64_enabled(by_layer):
    with jax.enable_x64(True):
        shape = dataclasses.replace(fakes.CONFIG, cache_by_layer=by_layer)
        iterate = ppo.make(ppo.changed(rollout_refill=4), models=(LanguageModel(shape), ScalarModel(shape)))
        episodes, _ = jax.eval_shape(iterate.rollout, ppo.real_params()[0], ppo.prompts(), ppo.KEY)
    assert episodes.tokens.dtype == np.int32
