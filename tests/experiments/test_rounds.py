"""Rounds of comparisons, reward model and PPO: what each round learns from, where it is, and when it resumes."""

import dataclasses
import json
import runpy
import shutil

import pytest

from instructjax import records
from instructjax.records import Prompt, Ranking
from instructjax.runs import checkpoint, processes
from instructjax.stages import answers, evaluate, ppo, reward, selection
from instructjax.stages.run import Run
from tests import recipes
from tests.scripts import Left, run

SHARED = ("pretrain", "sft", "ppo_init")
RECIPE = """
import pathlib
from tests.recipes import changed, recipe
def get_config():
    return changed(recipe(pathlib.Path(__file__).parent), files__rankings="", comparisons__prompts=4)
"""
# Simulated labelers rank few answers, and few are judged.
SANDBOX = """
from configs import sandbox
def get_config():
    config = sandbox.get_config("smoke").unlock()
    config.sandbox.update(documents=1_000, demonstrations=60, users=40, reward_prompts=80, prompts=120)
    config.sandbox.validation_prompts = 4
    config.comparisons.prompts = 12
    config.evaluate.update(prompts=8, batch_size=16, few_shot_candidates=1, few_shot_prompts=4, text_windows=4)
    config.sft.selection_prompts = 4
    return config
"""


def make_base(tmp_path, recipe):
    """Returns a run of a recipe whose shared stages look finished, and a function that runs rounds.py on it."""
    path, workdir = tmp_path / "recipe.py", tmp_path / "run"
    path.write_text(recipe)
    made = Run(runpy.run_path(str(path))["get_config"](), workdir)
    for seed, stage in enumerate(SHARED):
        recipes.prepare(made.config, workdir)
        recipes.begin(made.config, workdir, stage)
        save(recipes.opened(made.config, workdir, stage), seed)
    (workdir / "sft" / "selected.json").write_text('{"step": 1}')
    return made, lambda *flags: run("rounds.py", f"--config={path}", f"--workdir={workdir}", "--policy=ppo", *flags)


def save(stage, seed=None):
    """Saves random weights in place of training; those of a round differ by round."""
    if stage.run.is_finished(stage.name):
        return
    stage.begin()
    seed = int(stage.run.workdir.name) if seed is None else seed
    recipes.save_stage(stage.config, stage.run.workdir, stage.name, stage.run.layout.tokenizer, seed)
    (stage.directory / "metrics.jsonl").touch()


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    monkeypatch.setattr(reward, "run", dataclasses.replace(reward.run, function=save))
    monkeypatch.setattr(ppo, "run", dataclasses.replace(ppo.run, function=save))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Returns (workdir, a function that runs rounds.py on it), for files without rankings; nothing is evaluated."""

    def judge(one):
        policy = {"true_quality": None, "win_rate_vs_sft": None, "kl_to_init": 0.5}
        policy["reward"] = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}
        results = {"models": {"ppo": policy}, "reward_model": None}
        (one.workdir / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(selection, "select", lambda one: None)
    monkeypatch.setattr(evaluate, "evaluate", judge)
    _, rounds = make_base(tmp_path, RECIPE)
    return tmp_path / "run", rounds


@pytest.fixture
def no_answers(monkeypatch):
    monkeypatch.setattr(answers, "collect", lambda *_: [])


def made(workdir):
    """Returns the run of `base`."""
    return Run(runpy.run_path(str(workdir.parent / "recipe.py"))["get_config"](), workdir)


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
        expected = [record.prompt for record in made(workdir).records(Prompt, split)[:count]]
        assert [task["prompt"] for task in (*first, *second) if task["split"] == split] == expected
    table = rounds("--rounds=2", "--desk").splitlines()
    assert [line.split()[:2] for line in table] == [["round", "rankings"], ["1", "4"], ["2", "8"]]
    asked = [{one.prompt for one in records.read(folder / "data" / "rankings.jsonl", Ranking)} for folder in folders]
    assert asked == [{task["prompt"] for task in tasks} for tasks in (first, first + second)]
    found = json.loads((workdir / "rounds" / "rounds.json").read_text())["rounds"]
    assert [one["rankings"] for one in found] == [4, 8]


def test_a_round_has_the_shared_stages_and_they_take_no_space(base, no_answers):
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


def test_models_of_other_weights_are_refused(base, no_answers):
    workdir, rounds = base
    rounds("--desk")
    shutil.rmtree(workdir / "sft")
    save(recipes.opened(made(workdir).config, workdir, "sft"), seed=9)
    with pytest.raises(Left, match="rounds/1/sft: expected the checkpoint of .*/run/sft, found another"):
        rounds("--desk")


def test_models_of_another_recipe_are_refused(base, no_answers):
    _, rounds = base
    with pytest.raises(Left, match="rounds/1/sft/config.json: sft.epochs: expected 16.0, as the stage began with"):
        rounds("--desk", "--config.sft.epochs=3")


def test_a_copy_that_was_interrupted_is_made_again(base, no_answers):
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
        rounds("--desk", "--rounds=1", "--config.comparisons.prompts=30")


def test_more_rounds_than_there_are_prompts_are_refused_before_the_first(base):
    workdir, rounds = base
    with pytest.raises(Left, match="^error: prompts: expected 4 of the split train after the first 20, found 0; lower"):
        rounds("--desk", "--rounds=6", "--config.comparisons.min_answers=6")
    assert not (workdir / "rounds").exists()


def test_more_policies_than_answers_are_refused_before_the_first_round(base):
    workdir, rounds = base
    with pytest.raises(Left, match="^error: comparisons.stages: expected 1 to 4 stages .comparisons.min_answers."):
        rounds("--desk", "--rounds=5")
    assert not (workdir / "rounds").exists()


def test_rankings_among_the_records_are_refused(base):
    workdir, rounds = base
    recipe = workdir.parent / "recipe.py"
    recipe.write_text(recipe.read_text().replace('files__rankings="", ', ""))
    shutil.rmtree(workdir / "data")
    for flags in ([], ["--desk"]):
        with pytest.raises(Left, match="^error: rankings: expected none among the records, because each round"):
            rounds(*flags)


def test_a_recipe_without_labelers_needs_the_desk(base):
    _, rounds = base
    with pytest.raises(Left, match="^error: --desk: expected with a recipe that has no simulated labelers, found none"):
        rounds()


def test_processes_wait_for_copies_that_are_there(base, no_answers, monkeypatch):
    _, rounds = base
    rounds("--desk")
    waited = []
    monkeypatch.setattr(processes, "first", lambda function: waited.append(function.__qualname__) or function())
    rounds("--desk")
    assert sum(name.startswith("copy_stage.") for name in waited) == len(SHARED)


@pytest.mark.slow
def test_simulated_labelers_rank_round_after_round(tmp_path):
    made, rounds = make_base(tmp_path, SANDBOX)
    table = rounds("--rounds=2").splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["round", "1", "2"]
    folders = [made.workdir / "rounds" / name for name in ("1", "2")]
    first, second = (records.read(folder / "data" / "rankings.jsonl", Ranking) for folder in folders)
    assert [one.prompt for one in second[: len(first)]] == [one.prompt for one in first]
    assert {one.source for one in first} == {"sft"} and {one.source for one in second} == {"sft", "ppo+sft"}
    found = json.loads((made.workdir / "rounds" / "rounds.json").read_text())["rounds"]
    for folder, one in zip(folders, found, strict=True):
        assert (folder / "report.md").exists()
        results = json.loads((folder / "results.json").read_text())
        assert one["true_quality"] == results["models"]["ppo"]["true_quality"]
        assert one["reward_accuracy"] == results["reward_model"]["accuracy"]["heldout_labelers"]
    assert run("sample.py", f"--workdir={folders[1]}", "--stage=ppo", "--prompt=what do you see ?")
    before = (folders[0] / "results.json").read_text()
    assert rounds("--rounds=2").splitlines()[-3:] == table
    assert (folders[0] / "results.json").read_text() == before  # with its seconds: it was not evaluated again
