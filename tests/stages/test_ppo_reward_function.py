"""PPO with a function of texts as the reward."""

import pytest

from instructjax.errors import ConfigError
from instructjax.models.transformer import ScalarModel
from instructjax.runs import metrics_file
from instructjax.stages import ppo
from instructjax.stages.run import Run, policy_config
from tests import fakes
from tests.recipes import changed, recipe, save_checkpoint, save_stage


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Returns (config, workdir) with the stages before PPO, and my_rewards:seven in the current folder."""
    folder = tmp_path_factory.mktemp("reward_function")
    (folder / "my_rewards.py").write_text("def seven(prompts, responses):\n    return [7.0 for _ in responses]\n")
    config = changed(recipe(folder), ppo__iterations=2, ppo__reward_function="my_rewards:seven", evaluate__batch_size=8)
    workdir = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenizer = Run(config, workdir).layout.tokenizer
    save_stage(config, workdir, "ppo_init", tokenizer)
    shape = policy_config(config, tokenizer.vocab_size)
    save_checkpoint(config, workdir, "reward", tokenizer, shape, {"params": fakes.params(ScalarModel(shape))})
    (workdir / "reward" / "summary.json").write_text('{"steps": 1}')
    return config, workdir


def test_its_scores_are_the_rewards(before, monkeypatch):
    config, workdir = before
    monkeypatch.chdir(workdir.parent)
    ppo.run(Run(config, workdir))
    start, *lines = metrics_file.read(workdir / "ppo" / "metrics.jsonl")
    assert [line["reward"] for line in lines] == [7.0, 7.0]
    assert [line["validation_reward"] for line in (start, lines[-1])] == [7.0, 7.0]


def test_a_missing_reward_function_stops_before_any_work(before):
    config, workdir = before
    with pytest.raises(ConfigError, match="^ppo.reward_function: expected 'math:sevn' to be found"):
        ppo.run_with_text(Run(changed(config, ppo__reward_function="math:sevn"), workdir))
    assert not (workdir / "ppo_ptx").exists()
