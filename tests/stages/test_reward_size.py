"""Reward model and value network of another size than the policy, and frozen weights in half precision."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models import sizes
from instructjax.models.transformer import ScalarModel
from instructjax.runs import checkpoint, folder
from instructjax.stages import ppo
from instructjax.stages.run import Run, policy_config
from tests import fakes
from tests.recipes import changed, recipe, save_checkpoint, save_stage


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Returns a recipe whose policy has one layer of width 8, with checkpoints of both networks."""
    row = dataclasses.replace(sizes.SIZES["small"], num_layers=2, d_model=16, num_heads=2, d_head=8)
    monkeypatch.setattr(sizes, "SIZES", {**sizes.SIZES, "small": row})
    config = changed(recipe(tmp_path), ppo__iterations=2, ppo_log__save_every=1, ppo_log__evaluate_every=2)
    config = changed(config, reward__size="small", ppo__reward_from=str(tmp_path / "6b" / "reward" / "checkpoints"))
    layout = Run(config, tmp_path / "run").layout
    save_stage(config, tmp_path / "run", "ppo_init", layout.tokenizer)
    shape = sizes.resized(policy_config(config, layout.tokenizer.vocab_size), config.reward.size)
    params = fakes.params(ScalarModel(shape), seed=3)
    save_checkpoint(config, tmp_path / "6b", "reward", layout.tokenizer, shape, {"params": params})
    return config, tmp_path / "run", shape


@pytest.mark.slow
def test_a_finished_stage_continues_to_more_iterations(prepared):
    """Its weights equal those of a run with as many iterations from the start. The value network is a larger one."""
    config, workdir, shape = prepared
    assert (shape.num_layers, shape.d_model, shape.d_ff, config.model.d_model) == (2, 16, 64, 8)
    template = jax.eval_shape(lambda: fakes.params(ScalarModel(shape)))

    def value():
        return checkpoint.restore_params(workdir / "ppo" / "checkpoints", template, item="value/params")

    ppo.run(Run(changed(config, ppo__iterations=1), workdir))
    shorter = value()
    assert shorter["trunk"]["token_embedding"].shape[1] == 16
    ppo.run(Run(config, workdir))
    longer = value()
    shutil.rmtree(workdir / "ppo")
    ppo.run(Run(config, workdir))
    jax.tree.map(np.testing.assert_array_equal, longer, value())
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (shorter, longer)), strict=True))


@pytest.mark.slow
def test_frozen_weights_can_be_held_in_half_precision(prepared):
    config, workdir, _ = prepared
    ppo.run(Run(changed(config, model__dtype="bfloat16", ppo__frozen_dtype="bfloat16"), workdir))
    assert folder.is_finished(workdir, "ppo")


def test_freezing_changes_the_type_only():
    params = {"w": jnp.array([0.5, 1.0 + 2**-12])}
    frozen = ppo.freeze(params, params, (), "bfloat16")[0]
    assert frozen.reference["w"].dtype == frozen.reward["w"].dtype == jnp.bfloat16
    assert frozen.reference["w"].tolist() == [0.5, 1.0]
    assert ppo.freeze(params, params, (), "float32")[0].reward["w"].tolist() == params["w"].tolist()
