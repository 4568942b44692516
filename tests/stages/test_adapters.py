"""Stages that train adapters: what they save, what they load, and that they resume exactly."""

import shutil

import jax
import numpy as np
import pytest

from instructjax.errors import CheckpointError
from instructjax.models import lora
from instructjax.models.transformer import LanguageModel
from instructjax.runs import checkpoint_files, metrics_file
from instructjax.stages import dpo, exported, imported, ppo, reward, sft, trained
from instructjax.stages.run import Run
from tests.recipes import changed, recipe, save_stage


def lora_recipe(home, **changes):
    """Returns a small recipe with adapters of rank 2 and large learning rates."""
    config = changed(
        recipe(home),
        model__num_heads=2,
        model__d_head=4,
        lora__rank=2,
        lora__alpha=4.0,
        lora__dropout=0.1,
        sft__epochs=2.0,
        sft__learning_rate=0.05,
        sft__dropout=0.0,
        reward__learning_rate=0.05,
        log__every=1,
        log__save_every=2,
    )
    return changed(config, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a run with random weights of pretraining, and adapters by SFT."""
    home = tmp_path_factory.mktemp("lora")
    run = Run(lora_recipe(home), home / "run")
    save_stage(run.config, home / "run", "pretrain", run.layout.tokenizer)
    sft.run(run)
    return run


@pytest.fixture(scope="module")
def further(run):
    """Returns the run with adapters by the reward model and DPO, which started from those of SFT."""
    run.config.unlock()
    run.config.dpo = {**dpo_section()}
    run.config.lock()
    reward.run(run)
    dpo.run(run)
    return run


def dpo_section():
    keys = dpo.run.keys.keys
    return {name: key.value for name, key in keys.items()} | {"learning_rate": 0.05, "batch_size": 8}


def content(run, stage, step=None):
    """Returns the meta and the digests of the arrays of a checkpoint."""
    return checkpoint_files.read_content(checkpoint_files.step_path(run.directory(stage) / "checkpoints", step))


def copied(run, tmp_path):
    """Returns the run in a copy of its folder."""
    shutil.copytree(run.workdir, tmp_path / "moved")
    return Run(run.config, tmp_path / "moved")


def names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_only_adapters_are_trained_and_saved(run):
    saved = content(run, "sft")["arrays"]
    adapted = lora.init(jax.random.key(0), run.lora, run.policy_config)
    assert {name.removeprefix("params/") for name in saved if name.startswith("params/")} == names(adapted)
    moments = [name for name in saved if name.startswith("opt_state/") and not name.endswith("count")]
    assert len(moments) == 2 * len(names(adapted))
    losses = [line["loss"] for line in metrics_file.read(run.directory("sft") / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]


def test_adapters_are_merged_when_they_are_loaded_and_apart_when_they_are_trained_further(run):
    base, merged = run.load_start("pretrain"), run.load_policy("sft").params
    whole = run.load_start("sft")
    found, learned = lora.split(whole)
    jax.tree.map(np.testing.assert_array_equal, found, base)
    jax.tree.map(np.testing.assert_array_equal, merged, jax.jit(lora.merge, static_argnums=1)(whole, 4.0))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(learned))
    opened, _ = trained.open_policy(run.checkpoints("sft"))
    jax.tree.map(np.testing.assert_array_equal, opened.params, merged)
    plain = Run(changed(run.config, lora__rank=0), run.workdir).load_start("sft")
    jax.tree.map(np.testing.assert_array_equal, plain, merged)


def test_a_run_resumes_bit_for_bit_in_a_folder_that_was_moved(run, tmp_path):
    moved = copied(run, tmp_path)
    (moved.directory("sft") / "summary.json").unlink()
    shutil.rmtree(moved.directory("sft") / "checkpoints" / "5")
    sft.run(moved)
    assert content(moved, "sft", 4)["arrays"] != content(run, "sft", 5)["arrays"] == content(moved, "sft", 5)["arrays"]


@pytest.mark.slow
def test_another_base_is_refused(run, tmp_path):
    moved = copied(run, tmp_path)
    shutil.rmtree(moved.directory("pretrain"))
    with pytest.raises(CheckpointError, match="pretrain/checkpoints: expected a directory of checkpoints, found none"):
        moved.load_policy("sft")
    save_stage(run.config, moved.workdir, "pretrain", run.layout.tokenizer, seed=1)
    with pytest.raises(CheckpointError, match="pretrain/checkpoints/1: trunk/.*: expected the base of the adapters, "):
        moved.load_policy("sft")
    (moved.directory("sft") / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="sft/checkpoints: expected the base that the stage began with, found"):
        sft.run(moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora__rank": 3}, "lora.rank: expected 3, found adapters with 2"),
        ({"lora__alpha": 2.0}, "lora.alpha: expected 2.0, found adapters with 4.0"),
        ({"lora__matrices": ("attention/*",)}, "lora.matrices: expected .*attention/.*, found adapters with .*"),
    ],
)
def test_other_adapters_than_the_recipe_s_are_not_trained_further(run, changes, message):
    with pytest.raises(CheckpointError, match=f"sft/checkpoints: {message}"):
        Run(changed(run.config, **changes), run.workdir).load_start("sft")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_stage_that_starts_from_adapters_trains_them_on_the_same_base(further, stage):
    before, after = (content(further, name)["meta"]["base"] for name in ("sft", stage))
    assert after["checkpoints"] == before["checkpoints"] == "pretrain/checkpoints"
    assert after["arrays"].items() <= before["arrays"].items()
    saved = content(further, stage)["arrays"]
    learned = {name for name in saved if name.startswith("params/")}
    assert {name for name in learned if "lora" not in name} == (
        {"params/head/bias", "params/head/kernel"} if stage == "reward" else set()
    )
    start = content(further, "sft")["arrays"]
    assert all(saved[name] != start[name] for name in learned if "lora" in name)


@pytest.mark.slow
def test_an_exported_policy_has_merged_kernels(further, tmp_path):
    exported.export(further, "dpo", tmp_path / "out")
    model = LanguageModel(further.policy_config)
    found = imported.read(str(tmp_path / "out"), model, further.layout.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, found, further.load_policy("dpo").params)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"fsdp": 2, "tensor": 2}, {"data": -1, "fsdp": 1}, {"mode": "pmap"}])
def test_adapters_are_the_same_on_every_layout(run, tmp_path, layout):
    keys = {f"parallel__{name}": value for name, value in layout.items()}
    config = changed(run.config, sft__epochs=1.0, lora__dropout=0.0, **keys)
    expected = changed(config, parallel__mode="jit", parallel__data=-1, parallel__fsdp=-1, parallel__tensor=1)
    found = []
    for name, here in (("found", config), ("expected", expected)):
        other = Run(here, tmp_path / name)
        save_stage(here, tmp_path / name, "pretrain", other.layout.tokenizer)
        sft.run(other)
        found.append(other.load_policy("sft").params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *found)


def ppo_recipe(config, **changes):
    """Returns a recipe of two iterations."""
    config = changed(
        config,
        ppo__iterations=2,
        ppo__batch_size=16,
        ppo__minibatch_size=16,
        ppo__microbatches=2,
        ppo__learning_rate=0.02,
        ppo__value_learning_rate=0.02,
        ppo__warmup_iterations=0,
        ppo__validation_prompts=4,
        ppo__ptx_examples_per_episode=1,
        ppo__ptx_microbatches=1,
        ppo_log__save_every=1,
        ppo_log__evaluate_every=1,
        evaluate__batch_size=8,
        evaluate__text_windows=2,
    )
    return changed(config, **changes)


@pytest.fixture(scope="module")
def iterated(further):
    """Returns the run with PPO-ptx on one base, from the adapters of SFT."""
    start = str(further.checkpoints("sft"))
    run = Run(ppo_recipe(further.config, ppo__init_from=start), further.workdir)
    ppo.run_with_text(run)
    return run


@pytest.mark.slow
def test_four_networks_of_ppo_share_one_base(iterated):
    saved = content(iterated, "ppo_ptx")["arrays"]
    weights = [name for name in saved if not name.endswith(("count", "step", "skipped", "kl_coefficient"))]
    assert {name.rpartition("/")[2] for name in weights} == {"lora_a", "lora_b", "kernel", "bias"}
    assert all(name.startswith("value/") and "/head/" in name for name in weights if "lora" not in name)
    start, first, last = metrics_file.read(iterated.directory("ppo_ptx") / "metrics.jsonl")
    assert start["validation_kl"] == 0 and first["initial_kl"] == 0 and first["first_ratio_deviation"] == 0
    assert last["validation_kl"] != 0 and last["sampler_kl"] < 1e-8
    base, after = iterated.load_start("pretrain"), iterated.load_policy("ppo_ptx").params
    assert jax.tree.structure(base) == jax.tree.structure(after)
    np.testing.assert_array_equal(base["trunk"]["token_embedding"], after["trunk"]["token_embedding"])


@pytest.mark.slow
def test_ppo_resumes_bit_for_bit(iterated, tmp_path):
    shutil.copytree(iterated.workdir, tmp_path / "moved")
    moved = Run(iterated.config, tmp_path / "moved")
    (moved.directory("ppo_ptx") / "summary.json").unlink()
    shutil.rmtree(moved.directory("ppo_ptx") / "checkpoints" / "2")
    ppo.run_with_text(moved)
    expected = content(iterated, "ppo_ptx")["arrays"]
    assert content(moved, "ppo_ptx")["arrays"] == expected != content(moved, "ppo_ptx", 1)["arrays"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora__one_base": False},
        {"parallel__data": -1, "parallel__fsdp": 1},  # gradients are summed on each device first
        {"parallel__fsdp": 2, "parallel__tensor": 2},
        {"parallel__mode": "pmap"},
    ],
)
def test_iterations_are_the_same_with_two_bases_and_on_other_layouts(iterated, tmp_path, changes):
    other = Run(changed(iterated.config, **changes), copied(iterated, tmp_path).workdir)
    shutil.rmtree(other.directory("ppo_ptx"))
    ppo.run_with_text(other)
    found, expected = (run.load_policy("ppo_ptx").params for run in (other, iterated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.slow
def test_a_reward_model_with_its_own_trunk_shares_no_base(iterated, tmp_path):
    moved = copied(iterated, tmp_path)
    shutil.rmtree(moved.directory("reward"))
    save_stage(moved.config, moved.workdir, "reward", moved.layout.tokenizer)
    message = "reward/checkpoints: lora.one_base: expected a reward model with adapters on the policy's base, "
    with pytest.raises(CheckpointError, match=f"{message}.*pretrain/checkpoints/1, found one without adapters; "):
        ppo.run(moved)
    two = Run(changed(moved.config, lora__one_base=False, ppo__iterations=1), moved.workdir)
    ppo.run(two)
    line = metrics_file.read(two.directory("ppo") / "metrics.jsonl")[-1]
    assert line["initial_kl"] == 0
