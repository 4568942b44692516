"""Arms of a run: what they share with it, what they train, and when they are refused."""

import dataclasses
import shutil

import pytest

from configs import instructgpt
from instructjax import records
from instructjax.errors import CheckpointError, ConfigError, DataError
from instructjax.records import Ranking
from instructjax.runs import checkpoint
from instructjax.stages import arms, comparisons, ppo, ppo_init, reward
from instructjax.stages.arms import Arm
from instructjax.stages.run import Run
from tests import recipes

FINISHED = ("pretrain", "sft", "reward", "ppo_init")
trained = []


def finish(run, stage, seed):
    """Makes a stage look finished, with random weights."""
    recipes.begin(run.config, run.workdir, stage)
    recipes.save_stage(run.config, run.workdir, stage, run.layout.tokenizer, seed)


def save(stage):
    """Saves random weights in place of training."""
    trained.append(stage.name)
    stage.begin()
    recipes.save_stage(stage.config, stage.run.workdir, stage.name, stage.run.layout.tokenizer, len(trained))


PPO, PPO_INIT, REWARD = (dataclasses.replace(stage, function=save) for stage in (ppo.run, ppo_init.run, reward.run))


@pytest.fixture
def base(tmp_path):
    """Returns a run whose stages before PPO look finished."""
    run = Run(recipes.changed(recipes.recipe(tmp_path), files__rankings=""), tmp_path / "run")
    rankings = records.read(tmp_path / "rankings.jsonl", Ranking)
    comparisons.add(run, rankings, heldout=rankings[1::3])
    for seed, stage in enumerate(FINISHED):
        finish(run, stage, seed)
    trained.clear()
    return run


def test_factors_keep_integers():
    config = instructgpt.get_config()
    factors = {"ppo.iterations": 0.5, "ppo.kl_coefficient": 10, "ppo.ptx_microbatches": 0.01}
    assert arms.scaled(config, factors) == {
        "ppo.iterations": 250,
        "ppo.kl_coefficient": pytest.approx(0.2),
        "ppo.ptx_microbatches": 1,
    }


def test_an_arm_shares_what_it_does_not_train(base):
    arm = Arm("no_text", (PPO_INIT, PPO), {"ppo_init.text_share": 0.0}, {"ppo.iterations": 0.5})
    one = arms.train(base, arm)
    assert trained == ["ppo_init", "ppo"]
    assert one.workdir == base.workdir / "arms" / "no_text"
    assert (one.config.ppo_init.text_share, one.config.ppo.iterations) == (0.0, base.config.ppo.iterations // 2)
    for stage, same in (("pretrain", True), ("reward", True), ("ppo_init", False)):
        found, expected = (checkpoint.fingerprint(run.checkpoints(stage)) for run in (one, base))
        assert (found == expected) == same
    assert not one.directory("sft").exists()  # no stage of the arm starts from it


def test_a_finished_arm_is_not_trained_again(base):
    arm = Arm("large_kl", (PPO,), {"ppo.kl_coefficient": 2.0})
    for _ in range(2):
        arms.train(base, arm)
    assert trained == ["ppo"]


@pytest.mark.parametrize("change", [{"ppo.kl_coefficient": 1.0}, {"ppo.iterations": 3}])
def test_a_finished_arm_with_another_recipe_is_refused(base, change):
    arms.train(base, Arm("large_kl", (PPO,), {"ppo.kl_coefficient": 2.0}))
    with pytest.raises(ConfigError, match=f"arms/large_kl/ppo/config.json: .*{list(change)[0]}: expected"):
        arms.train(base, Arm("large_kl", (PPO,), {"ppo.kl_coefficient": 2.0, **change}))


def test_an_arm_may_not_change_a_stage_that_it_shares(base):
    with pytest.raises(ConfigError, match="arms/other/reward/config.json: reward.epochs: expected 1.0"):
        arms.train(base, Arm("other", (PPO,), {"reward.epochs": 2.0}))


def test_an_arm_of_other_weights_is_refused(base):
    arm = Arm("large_kl", (PPO,), {"ppo.kl_coefficient": 2.0})
    arms.train(base, arm)
    shutil.rmtree(base.directory("reward"))
    finish(base, "reward", seed=9)
    with pytest.raises(CheckpointError, match="arms/large_kl/reward: expected the checkpoint of"):
        arms.train(base, arm)


def test_an_arm_can_learn_from_some_of_the_rankings(base):
    arm = Arm("few", (REWARD,), rankings=lambda found: list(found[:3]))
    one = arms.train(base, arm)
    assert list(one.records(Ranking, "train")) == list(base.records(Ranking, "train")[:3])
    assert list(one.records(Ranking, "validation")) == list(base.records(Ranking, "validation"))
    arms.train(base, arm)
    assert trained == ["reward"]
    with pytest.raises(DataError, match="arms/few/data/rankings.jsonl: expected the arm's rankings"):
        arms.train(base, Arm("few", (REWARD,), rankings=lambda found: list(found[:4])))
