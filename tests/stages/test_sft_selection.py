"""The choice among SFT checkpoints is valid until the reward model or the candidates change."""

import json
import shutil

import pytest

from instructjax.stages import selection, sft
from instructjax.stages.run import Run
from tests.recipes import changed, recipe, save_stage


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """Makes the choice once, with fake scores instead of a reward model's. Returns (config, workdir, calls)."""
    config, workdir, calls = recipe(tmp_path), tmp_path / "run", []
    layout = Run(config, workdir).layout
    for stage in ("pretrain", "sft", "reward"):
        save_stage(config, workdir, stage, layout.tokenizer)

    def scores(run, steps):
        calls.append((run.config.ppo.reward_from, steps))
        return {step: -float(step) for step in steps}

    monkeypatch.setattr(selection, "_mean_rewards", scores)
    selection.select(Run(config, workdir))
    return config, workdir, calls


def test_a_choice_is_made_once(chosen):
    config, workdir, calls = chosen
    assert selection.select(Run(config, workdir)) == 1 == selection.selection(Run(config, workdir))["step"]
    assert calls == [("", [1])]


def test_a_new_reward_model_chooses_again(chosen):
    config, workdir, calls = chosen
    shutil.rmtree(workdir / "reward")
    save_stage(config, workdir, "reward", Run(config, workdir).layout.tokenizer, seed=1)
    selection.select(Run(config, workdir))
    assert len(calls) == 2


def test_the_reward_model_of_ppo_chooses(chosen, tmp_path):
    config, workdir, calls = chosen
    save_stage(config, tmp_path / "other", "reward", Run(config, workdir).layout.tokenizer, seed=1)
    start = tmp_path / "other" / "reward" / "checkpoints"
    selection.select(Run(changed(config, ppo__reward_from=str(start)), workdir))
    assert calls[1][0] == str(start)


def test_new_candidates_lead_to_a_new_choice(chosen):
    config, workdir, calls = chosen
    (workdir / "sft" / "summary.json").write_text('{"steps": 400}')
    assert selection.select(Run(config, workdir)) == 100
    assert calls[1][1] == [100, 200, 300, 400]
    assert list(json.loads((workdir / "sft" / "selected.json").read_text())["reward"]) == ["100", "200", "300", "400"]


def test_sft_that_trains_again_forgets_the_choice(chosen, monkeypatch):
    config, workdir, _ = chosen
    monkeypatch.setattr(sft.language_model, "train", lambda *arguments, **named: None)
    sft.run(Run(config, workdir))
    assert (workdir / "sft" / "selected.json").exists()
    (workdir / "sft" / "summary.json").unlink()
    sft.run(Run(config, workdir))
    assert not (workdir / "sft" / "selected.json").exists()
