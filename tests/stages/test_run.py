"""A run prepares its records once, at their first use, and finds the results of stages."""

import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest

from instructjax.data.layouts import Layout
from instructjax.errors import CheckpointError, ConfigError
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Demonstration, Prompt, Ranking
from instructjax.stages import prepare
from instructjax.stages.run import Run
from instructjax.training import parallel
from tests import fakes
from tests.recipes import changed, recipe, save_checkpoint, save_stage


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run with prepared records."""
    folder = tmp_path_factory.mktemp("run")
    found = Run(recipe(folder), folder / "run", "configs/mine.py")
    assert isinstance(found.layout, Layout)
    return found


def beside(run, tmp_path, **changes):
    """Returns a run with the same records in a folder with the test's own stages."""
    return Run(changed(run.config, **changes), tmp_path)


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.layout,
        lambda run: run.policy_config,
        lambda run: run.reward_config,
        lambda run: run.has(Ranking),
        lambda run: run.records(Prompt, "test"),
        lambda run: run.validation_text(),
        lambda run: run.validation_demonstrations(),
        lambda run: run.validation_rankings(),
    ],
    ids=["layout", "policy", "reward", "has", "records", "text", "demonstrations", "rankings"],
)
def test_the_first_use_of_records_prepares_them(tmp_path, ask):
    run = Run(recipe(tmp_path), tmp_path / "run")
    assert ask(run)
    assert (run.workdir / "data" / "checked.json").exists()


def test_records_are_prepared_once(tmp_path, monkeypatch):
    run, calls = Run(recipe(tmp_path), str(tmp_path / "run")), []
    once = prepare.prepare
    monkeypatch.setattr(prepare, "prepare", lambda run: calls.append(run) or once(run))
    assert run.layout is run.layout
    assert len(run.records(Demonstration, "train")) == len(run.records(Demonstration, "validation")) == 20
    run.require("sft", "reward")
    assert calls == [run]


def test_an_invalid_recipe_is_rejected_before_anything_is_written(tmp_path):
    run = Run(changed(recipe(tmp_path), ppo__batch_size=9), tmp_path / "run")
    with pytest.raises(ConfigError, match="^ppo.batch_size: expected a multiple of ppo.minibatch_size"):
        run.records(Prompt, "train")
    assert not run.workdir.exists()


def test_batches_of_validation_records_hold_all_of_them(run):
    assert sum(int(batch.valid.sum()) for batch in run.validation_rankings()) == 40  # twenty, of two answers each
    texts = run.validation_text()
    assert sum(len(batch.tokens) for batch in texts) <= run.config.evaluate.text_windows


def test_on_a_mesh_all_devices_share_a_batch_of_validation_records(run):
    mesh = {"mode": "jit", "data": 1, "fsdp": 8, "tensor": 1, "shard_optimizer_state": False}
    run = dataclasses.replace(run, config=changed(run.config, evaluate__batch_size=12))
    with parallel.on_mesh(ml_collections.ConfigDict(mesh)):
        shown, ranked = run.validation_demonstrations(), run.validation_rankings()
    assert {len(batch.tokens) % 8 for batch in (*shown, *ranked)} == {0}
    expected = run.validation_demonstrations()
    assert sum(batch.weights.sum() for batch in shown) == sum(batch.weights.sum() for batch in expected)
    assert sum(batch.valid.sum() for batch in ranked) == 40


def test_checkpoints_are_those_of_this_run_or_those_that_the_recipe_names(run, tmp_path):
    found = beside(run, tmp_path)
    with pytest.raises(CheckpointError, match="/sft: expected the finished stage sft, found none$"):
        found.checkpoints("sft")
    assert found.checkpoints("sft", "elsewhere/checkpoints").as_posix() == "elsewhere/checkpoints"
    save_stage(run.config, tmp_path, "sft", run.layout.tokenizer)
    assert found.is_finished("sft") and found.checkpoints("sft") == tmp_path / "sft" / "checkpoints"


def policies(run, *seeds):
    return [fakes.params(LanguageModel(run.policy_config), seed=seed) for seed in seeds]


def test_the_policy_of_sft_is_its_chosen_checkpoint_or_else_its_last(run, tmp_path):
    early, late = policies(run, 1, 2)
    for step, params in ((1, early), (2, late)):
        state = {"params": params}
        save_checkpoint(run.config, run.workdir, "sft", run.layout.tokenizer, run.policy_config, state, step=step)
    (run.workdir / "sft" / "summary.json").write_text("{}")
    assert_same(run.load_policy("sft").params, late)
    (run.workdir / "sft" / "selected.json").write_text(json.dumps({"step": 1}))
    assert_same(run.load_policy("sft").params, early)
    opened, layout = run.open_policy("sft")
    assert_same(opened.params, early)
    assert layout == dataclasses.replace(run.layout, tokenizer=layout.tokenizer)
    assert_same(run.load_start("sft"), late)  # training starts from the last checkpoint


def test_a_start_that_points_at_ppo_is_its_averaged_policy(run, tmp_path):
    last, average = policies(run, 3, 4)
    state = {"policy": {"params": last, "ema": average}}
    save_checkpoint(run.config, tmp_path, "ppo_ptx", run.layout.tokenizer, run.policy_config, state)
    assert_same(run.load_start("pretrain", str(tmp_path / "ppo_ptx" / "checkpoints")), average)


def test_a_reward_model_has_its_own_network(run, tmp_path):
    scalar = fakes.params(ScalarModel(run.reward_config))
    save_checkpoint(run.config, tmp_path, "reward", run.layout.tokenizer, run.reward_config, {"params": scalar})
    assert_same(run.load_reward_model(str(tmp_path / "reward" / "checkpoints")).params, scalar)
    with pytest.raises(CheckpointError, match="checkpoint of a policy, found one of the stage reward, which has none$"):
        run.load_start("sft", str(tmp_path / "reward" / "checkpoints"))
    (tmp_path / "reward" / "summary.json").write_text("{}")
    with pytest.raises(CheckpointError, match="checkpoint of a policy, found one of the stage reward, which has none$"):
        Run(run.config, tmp_path).open_policy("reward")
    opened, _ = Run(run.config, tmp_path).open_reward_model()
    assert_same(opened.params, scalar)


def test_opening_needs_no_records_and_takes_the_network_from_the_checkpoint(run, tmp_path):
    save_stage(run.config, tmp_path, "pretrain", run.layout.tokenizer)
    other = beside(run, tmp_path, model__num_layers=2, files__text="nowhere.jsonl")
    policy, layout = other.open_policy("pretrain")
    assert policy.model.config == run.policy_config
    assert layout.tokenizer.fingerprint == run.layout.tokenizer.fingerprint
    assert not (tmp_path / "data").exists()
