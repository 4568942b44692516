"""Arms of a run: what they share with it, what they train, and when they are refused."""

import dataclasses
import shutil

import pytest

from configs import instructgpt, sandbox
from instructjax import records
from instructjax.errors import CheckpointError, ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking
from instructjax.runs import checkpoint
from instructjax.sources.sandbox import REWARD_PROMPTS
from instructjax.stages import arms, comparisons, ppo, ppo_init, reward, sft
from instructjax.stages.arms import Arm
from instructjax.stages.run import Run
from tests import recipes

FINISHED = ("pretrain", "sft", "reward", "ppo_init")
trained = []


def finish(run, stage, seed):
    """Makes a stage look finished, with random weights."""
    recipes.begin(run.config, run.workdir, stage)
    recipes.save_stage(run.config, run.workdir, stage, run.layout.tokenizer, seed)


@pytest.fixture(autouse=True)
def nothing_trained():
    trained.clear()


def save(stage):
    """Saves random weights in place of training."""
    trained.append(stage.name)
    stage.begin()
    recipes.save_stage(stage.config, stage.run.workdir, stage.name, stage.run.layout.tokenizer, len(trained))


PPO, PPO_INIT, REWARD, SFT = (
    dataclasses.replace(stage, function=save) for stage in (ppo.run, ppo_init.run, reward.run, sft.run)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a run of a tiny sandbox whose stages before PPO look finished."""
    config = sandbox.get_config("smoke").unlock()
    config.sandbox.update(documents=60, demonstrations=60, users=60, reward_prompts=40, prompts=60)
    config.tokenizer.vocab_size = 330
    config.data.update(max_prompt=60, max_response=60, validation=0.2, test=0.2)
    config.model.update(num_layers=1, d_model=8, num_heads=1, d_head=8, d_ff=8)
    run = Run(config.lock(), tmp_path_factory.mktemp("arms") / "run")
    asked = run.layout and records.read(run.data_folder / REWARD_PROMPTS, Prompt)
    rankings = [
        Ranking(prompt=one.prompt, responses=("a", "b"), scores=(1.0, 0.0), split=one.split)
        for one in asked
        if one.split != "test"
    ]
    comparisons.add(run, rankings, heldout=[])
    for seed, stage in enumerate(FINISHED):
        finish(run, stage, seed)
    return run


@pytest.fixture
def base(made, tmp_path):
    """Returns a copy of that run."""
    shutil.copytree(made.workdir, tmp_path / "run")
    return Run(made.config, tmp_path / "run")


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
    with pytest.raises(ConfigError, match="arms/other/reward/config.json: reward.epochs: expected 2.0"):
        arms.train(base, Arm("other", (PPO,), {"reward.epochs": 3.0}))


def test_an_arm_of_other_weights_is_refused(base):
    arm = Arm("large_kl", (PPO,), {"ppo.kl_coefficient": 2.0})
    arms.train(base, arm)
    shutil.rmtree(base.directory("reward"))
    finish(base, "reward", seed=9)
    with pytest.raises(CheckpointError, match="arms/large_kl/reward: expected the checkpoint of"):
        arms.train(base, arm)


def test_an_arm_can_learn_from_some_of_the_rankings(base):
    arm = Arm("few", (REWARD,), records={Ranking: lambda found, seed: list(found[:3])})
    one = arms.train(base, arm)
    assert list(one.records(Ranking, "train")) == list(base.records(Ranking, "train")[:3])
    assert list(one.records(Ranking, "validation")) == list(base.records(Ranking, "validation"))
    arms.train(base, arm)
    assert trained == ["reward"]
    with pytest.raises(DataError, match="arms/few/data/rankings.jsonl: expected the records that the arm now has"):
        arms.train(base, Arm("few", (REWARD,), records={Ranking: lambda found, seed: list(found[:4])}))


def test_an_arm_can_learn_from_other_demonstrations(base):
    written = Demonstration(prompt="the fox", response="a fox", split="train")
    arm = Arm("other", (SFT,), records={Demonstration: lambda found, seed: [written] * (seed + 2)})
    one = arms.train(base, arm)
    assert list(one.records(Demonstration, "train")) == [written] * 2
    assert list(one.records(Demonstration, "test")) == list(base.records(Demonstration, "test"))
    assert list(one.records(Ranking, "train")) == list(base.records(Ranking, "train"))
    with pytest.raises(
        DataError,
        match="arms/no_sft/ppo_init/began.json: demonstrations: expected the records that the stage began with",
    ):
        arms.train(base, Arm("no_sft", (PPO,), records=arm.records))  # the reward model learned from the run's


def test_records_that_the_run_has_not_written_are_refused(tmp_path):
    run = Run(recipes.recipe(tmp_path), tmp_path / "run")
    arm = Arm("other", (SFT,), records={Demonstration: lambda found, seed: list(found)})
    with pytest.raises(DataError, match="run/data/demonstrations.jsonl: expected records that the run has written"):
        arms.train(run, arm)
