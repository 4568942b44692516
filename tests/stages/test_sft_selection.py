"""The choice among SFT checkpoints lasts as long as what it was made from."""

import json
import shutil

import pytest

from instructjax.stages import prepare, sft
from instructjax.stages.workspace import checkpoints_of
from tests.tiny_recipes import changed, recipe, save_stage


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """(config, workdir, calls): the choice was made once, by scores that stand in for a reward model's."""
    config, workdir, calls = recipe(tmp_path), tmp_path / "run", []
    layout = prepare.run(config, workdir)
    for stage in ("pretrain", "sft", "reward"):
        save_stage(config, workdir, stage, layout.tokenizer)

    def scores(config, workdir, start, steps):
        calls.append((start, steps))
        return {step: -float(step) for step in steps}

    monkeypatch.setattr(sft, "_mean_rewards", scores)
    sft.select(config, workdir)
    return config, workdir, calls


def test_a_choice_is_made_once(chosen):
    config, workdir, calls = chosen
    assert sft.select(config, workdir) == 1 == sft.selection(workdir)["step"]
    assert calls == [(checkpoints_of("", workdir, "reward"), [1])]


def test_another_reward_model_chooses_anew(chosen):
    config, workdir, calls = chosen
    shutil.rmtree(workdir / "reward")
    save_stage(config, workdir, "reward", prepare.run(config, workdir).tokenizer, seed=1)
    sft.select(config, workdir)
    assert len(calls) == 2


def test_the_reward_model_of_ppo_chooses(chosen, tmp_path):
    config, workdir, calls = chosen
    save_stage(config, tmp_path / "other", "reward", prepare.run(config, workdir).tokenizer, seed=1)
    start = tmp_path / "other" / "reward" / "checkpoints"
    sft.select(changed(config, ppo__reward_from=str(start)), workdir)
    assert calls[1][0] == start


def test_other_candidates_are_chosen_among_anew(chosen):
    config, workdir, calls = chosen
    (workdir / "sft" / "summary.json").write_text('{"steps": 400}')
    assert sft.select(config, workdir) == 100
    assert calls[1][1] == [100, 200, 300, 400]
    assert list(json.loads((workdir / "sft" / "selected.json").read_text())["reward"]) == ["100", "200", "300", "400"]


def test_sft_that_trains_again_forgets_the_choice(chosen, monkeypatch):
    config, workdir, _ = chosen
    monkeypatch.setattr(sft.language_model, "train", lambda *arguments, **named: None)
    sft.run(config, workdir)
    assert (workdir / "sft" / "selected.json").exists()
    (workdir / "sft" / "summary.json").unlink()
    sft.run(config, workdir)
    assert not (workdir / "sft" / "selected.json").exists()
