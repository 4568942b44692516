"""Rounds of comparisons, reward model and PPO: what each round learns from, where it is, and when it resumes."""

import dataclasses
import json
import shutil

import pytest

from instructjax import records
from instructjax.records import Prompt, Ranking
from instructjax.runs import checkpoint
from instructjax.stages import evaluate, ppo, reward, selection
from instructjax.stages.run import Run
from tests import recipes
from tests.scripts import Left, run

CHANGES = {"files__rankings": "", "comparisons__prompts": 4}
RECIPE = f"""
import pathlib
from tests import recipes
def get_config():
    return recipes.changed(recipes.recipe(pathlib.Path(__file__).parent), **{CHANGES})
"""
SHARED = ("pretrain", "sft", "ppo_init")


def config(workdir):
    """Returns a recipe for files next to the folder, without rankings."""
    return recipes.changed(recipes.recipe(workdir.parent), **CHANGES)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Returns (workdir, rounds): a folder whose shared stages are finished, and a function that runs rounds.py on it.

    The stages of a round save random weights instead of learning.
    """

    def save(stage):
        if not stage.run.is_finished(stage.name):
            stage.begin()
            seed = int(stage.run.workdir.name)
            recipes.save_stage(stage.config, stage.run.workdir, stage.name, stage.run.layout.tokenizer, seed)

    def judge(one):
        policy = {"true_quality": None, "win_rate_vs_sft": None, "kl_to_init": 0.5}
        policy["reward"] = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}
        results = {"models": {"ppo": policy}, "reward_model": None}
        (one.workdir / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(reward, "run", dataclasses.replace(reward.run, function=save))
    monkeypatch.setattr(ppo, "run", dataclasses.replace(ppo.run, function=save))
    monkeypatch.setattr(selection, "select", lambda one: None)
    monkeypatch.setattr(evaluate, "evaluate", judge)
    path, workdir = tmp_path / "recipe.py", tmp_path / "run"
    path.write_text(RECIPE)
    layout = recipes.prepare(config(workdir), workdir)
    for seed, stage in enumerate(SHARED):
        recipes.begin(config(workdir), workdir, stage)
        recipes.save_stage(config(workdir), workdir, stage, layout.tokenizer, seed)
    (workdir / "sft" / "selected.json").write_text('{"step": 1}')
    return workdir, lambda *flags: run("rounds.py", f"--config={path}", f"--workdir={workdir}", "--policy=ppo", *flags)


def label(folder):
    """Prefers the longest answer to each task of a round; returns the tasks."""
    tasks = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    ranked = [
        Ranking(
            prompt=task["prompt"],
            responses=tuple(task["responses"]),
            scores=tuple(map(float, range(len(task["responses"])))),
            split=task["split"],
        )
        for task in tasks
    ]
    records.write(folder / "labels" / "rankings.jsonl", ranked)
    return tasks


def test_people_label_round_after_round(base):
    workdir, rounds = base
    folders = [workdir / "rounds" / name for name in ("1", "2")]
    printed = rounds("--rounds=2", "--desk")
    assert f"label.py --workdir={folders[0]} --tasks={folders[0]}/tasks.jsonl" in printed
    assert rounds("--rounds=2", "--desk") == printed  # until there are labels
    first = label(folders[0])
    assert f"label.py --workdir={folders[1]} --export={folders[1]}/labels" in rounds("--rounds=2", "--desk")
    second = label(folders[1])
    assert [task["models"] for task in (first[0], second[0])] == [["sft"] * 4, ["../1/ppo"] * 2 + ["sft"] * 2]
    for tasks in (first, second):
        assert [task["split"] for task in tasks] == ["train"] * 4 + ["validation"]
    for split, count in (("train", 8), ("validation", 2)):
        expected = [record.prompt for record in Run(config(workdir), workdir).records(Prompt, split)[:count]]
        assert [task["prompt"] for task in (*first, *second) if task["split"] == split] == expected
    table = rounds("--rounds=2", "--desk").splitlines()
    assert [line.split()[:2] for line in table] == [["round", "rankings"], ["1", "4"], ["2", "8"]]
    asked = [{one.prompt for one in records.read(folder / "data" / "rankings.jsonl", Ranking)} for folder in folders]
    assert asked == [{task["prompt"] for task in tasks} for tasks in (first, first + second)]
    found = json.loads((workdir / "rounds" / "rounds.json").read_text())["rounds"]
    assert [one["rankings"] for one in found] == [4, 8]


def test_a_round_has_the_shared_stages_and_they_take_no_space(base):
    workdir, rounds = base
    rounds("--desk")
    for stage in SHARED:
        here, there = (folder / stage / "checkpoints" for folder in (workdir, workdir / "rounds" / "1"))
        assert checkpoint.fingerprint(here) == checkpoint.fingerprint(there)
        files = [path for path in here.rglob("*") if path.is_file()]
        assert files and all(path.samefile(there / path.relative_to(here)) for path in files)
    # Only checkpoints never change in place. The choice among them is that of a reward model.
    note = "sft/began.json"
    assert not (workdir / note).samefile(workdir / "rounds" / "1" / note)
    assert not (workdir / "rounds" / "1" / "sft" / "selected.json").exists()


def test_models_of_other_weights_are_refused(base):
    workdir, rounds = base
    rounds("--desk")
    shutil.rmtree(workdir / "sft")
    changed = Run(config(workdir), workdir)
    recipes.save_stage(changed.config, workdir, "sft", changed.layout.tokenizer, seed=9)
    with pytest.raises(Left, match="rounds/1/sft: expected the checkpoint of .*/run/sft, found another"):
        rounds("--desk")


def test_models_of_another_recipe_are_refused(base):
    _, rounds = base
    with pytest.raises(Left, match="rounds/1/sft/config.json: sft.epochs: expected 16.0, as the stage began with"):
        rounds("--desk", "--config.sft.epochs=3")


def test_a_copy_that_was_interrupted_is_made_again(base):
    workdir, rounds = base
    partial = workdir / "rounds" / "1" / ".sft"
    partial.mkdir(parents=True)
    (partial / "summary.json").write_text("")
    rounds("--desk")
    assert not partial.exists()
    assert json.loads((workdir / "rounds" / "1" / "sft" / "summary.json").read_text()) == {"steps": 1}


def test_too_few_prompts_are_told(base):
    _, rounds = base
    with pytest.raises(
        Left, match="^error: prompts: expected 30 of the split train after the first 0, found 20; lower"
    ):
        rounds("--desk", "--config.comparisons.prompts=30")
