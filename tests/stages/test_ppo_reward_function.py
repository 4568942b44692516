"""PPO with a function of texts for a reward."""

import pytest

from instructjax.errors import ConfigError
from instructjax.models.transformer import ScalarModel
from instructjax.runs import checkpoint, metrics_file
from instructjax.stages import ppo, prepare, workspace
from tests import tiny_models
from tests.tiny_recipes import changed, recipe, save_stage


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """(config, workdir) with the stages before PPO; my_rewards:seven lies in the folder beside."""
    folder = tmp_path_factory.mktemp("reward_function")
    (folder / "my_rewards.py").write_text("def seven(prompts, responses):\n    return [7.0 for _ in responses]\n")
    config = changed(recipe(folder), ppo__iterations=2, ppo__reward_function="my_rewards:seven", evaluate__batch_size=8)
    workdir = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tokenizer = prepare.run(config, workdir).tokenizer
    save_stage(config, workdir, "ppo_init", tokenizer)
    shape = workspace.model_config(config, tokenizer)
    with checkpoint.Checkpoints(workdir / "reward" / "checkpoints") as checkpoints:
        params = tiny_models.params(ScalarModel(shape))
        checkpoints.save(1, {"params": params}, meta=workspace.describe(config, shape, tokenizer))
    (workdir / "reward" / "summary.json").write_text('{"steps": 1}')
    return config, workdir


def test_its_scores_are_the_rewards(before, monkeypatch):
    config, workdir = before
    monkeypatch.chdir(workdir.parent)
    ppo.run_ppo(config, workdir)
    start, *lines = metrics_file.read(workdir / "ppo" / "metrics.jsonl")
    assert [line["reward"] for line in lines] == [7.0, 7.0]
    assert [line["validation_reward"] for line in (start, lines[-1])] == [7.0, 7.0]


def test_one_that_is_not_there_stops_before_any_work(before):
    config, workdir = before
    with pytest.raises(ConfigError, match="^ppo.reward_function: expected 'math:sevn' to be found"):
        ppo.run_ppo_ptx(changed(config, ppo__reward_function="math:sevn"), workdir)
    assert not (workdir / "ppo_ptx").exists()
