"""Imports of weights on a mesh: the bits of an import on one device, with the placement of restored weights."""

import jax
import numpy as np
import pytest

from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.stages import imported, pretrain, trained
from instructjax.stages.run import Run, policy_config
from instructjax.training import parallel
from tests.recipes import changed, recipe, save_checkpoint
from tests.stages.test_imported import PIECES, assert_identical, folder_of, importing

LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "biases": "none", "tied": False}
LLAMA |= {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 4}
MODELS = {"gpt2": {"num_layers": 2}, "llama": LLAMA}
CASES = [("gpt2", LanguageModel), ("llama", ScalarModel)]
MESHES = {"fsdp": {"fsdp": 8}, "all axes": {"data": 2, "fsdp": 2, "tensor": 2}, "data": {"data": 8, "fsdp": 1}}


@pytest.fixture(params=MESHES)
def config(request, tmp_path):
    return changed(recipe(tmp_path), **{f"parallel__{axis}": size for axis, size in MESHES[request.param].items()})


def shardings(tree):
    return jax.tree.map(lambda leaf: (leaf.sharding, getattr(leaf, "committed", True)), tree)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_imported_weights_are_placed_like_restored_ones(tmp_path, config, name, kind):
    config = changed(config, **{f"model__{key}": value for key, value in MODELS[name].items()})
    shape, stage = policy_config(config, PIECES.vocab_size), "pretrain" if kind is LanguageModel else "reward"
    params = folder_of(tmp_path / "model", config, PIECES, kind, changes={"score_offset": -1.5})
    one_device = imported.read(str(tmp_path / "model"), kind(shape), PIECES)
    with parallel.on_mesh(config.parallel):
        found = imported.read(str(tmp_path / "model"), kind(shape), PIECES)
        assert shardings(found) == shardings(parallel.abstract(found))
        save_checkpoint(config, tmp_path / "run", stage, PIECES, shape, {"params": found})
        load = trained.load_policy if kind is LanguageModel else trained.load_reward_model
        restored = load(tmp_path / "run" / stage / "checkpoints", shape, PIECES).params
        assert shardings(found) == shardings(restored)
    assert_identical(found, one_device)
    assert_identical(restored, one_device)
    np.testing.assert_array_equal(found["trunk"]["token_embedding"], params["trunk"]["token_embedding"])
    assert config.parallel.fsdp == 1 or not found["trunk"]["token_embedding"].is_fully_replicated


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_device_gets_more_than_its_shards(tmp_path, config, name, kind, monkeypatch):
    config = changed(config, **{f"model__{key}": value for key, value in MODELS[name].items()})
    folder_of(tmp_path / "model", config, PIECES, kind, changes={"score_offset": -1.5})
    model, make = kind(policy_config(config, PIECES.vocab_size)), jax.make_array_from_callback

    def make_from_shards(*arguments):  # JAX raises an error if the callback gives more than a shard
        with jax.transfer_guard_host_to_device("allow"):
            return make(*arguments)

    monkeypatch.setattr(jax, "make_array_from_callback", make_from_shards)
    with parallel.on_mesh(config.parallel), jax.transfer_guard_host_to_device("disallow"):
        imported.read(str(tmp_path / "model"), model, PIECES)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_a_stage_imports_the_same_weights_in_each_mode(tmp_path, mode):
    config = changed(recipe(tmp_path), parallel__mode=mode)
    params = folder_of(tmp_path / "model", config, PIECES)
    pretrain.run(Run(importing(config, "pretrain", tmp_path / "model"), tmp_path / "run"))
    found, _ = trained.open_policy(tmp_path / "run" / "pretrain" / "checkpoints")
    assert_identical(found.params, params)
