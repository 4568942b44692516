"""Runs are grouped by recipe, and a run is read as far as it got."""

import pytest

from instructjax.errors import DataError
from instructjax.reporting import run_groups
from tests.reporting.run_folders import RECIPE, changed, results, write_run


def grouped(folder):
    """Returns {label: names of runs} of a folder of runs."""
    return {group.label: [run.name for run in group.runs] for group in run_groups.load_groups(folder)}


def test_seeds_are_in_one_group(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", recipe=changed(RECIPE, seed=seed), found=results(seed))
    assert grouped(tmp_path) == {"sandbox": ["seed0", "seed1"]}


def test_a_smoke_run_next_to_a_full_one_is_a_group_of_its_own(tmp_path):
    write_run(tmp_path / "full", found=results())
    write_run(
        tmp_path / "smoke", recipe=changed(RECIPE, pretrain={"steps": 2}), found=results(1, "configs/sandbox.py:smoke")
    )
    assert grouped(tmp_path) == {"sandbox": ["full"], "sandbox:smoke": ["smoke"]}


def test_smoke_runs_saved_without_config_are_told_apart_by_the_name_of_their_recipe(tmp_path):
    write_run(tmp_path / "full", recipe=None, found=results())
    write_run(tmp_path / "seed1", recipe=None, found=results(1))
    write_run(tmp_path / "smoke", recipe=None, found=results(0, "configs/sandbox.py:smoke"))
    assert grouped(tmp_path) == {"sandbox": ["full", "seed1"], "sandbox:smoke": ["smoke"]}


def test_recipes_of_one_name_are_told_apart_by_their_keys(tmp_path):
    write_run(tmp_path / "a", found=results())
    write_run(tmp_path / "b", recipe=changed(RECIPE, ppo={"kl_coefficient": 0.02}), found=results())
    many = changed(RECIPE, ppo={"kl_coefficient": 0.1}, sft={"epochs": 1}, pretrain={"steps": 1, "learning_rate": 1.0})
    write_run(tmp_path / "c", recipe=many)  # without results: the name comes from where its records are from
    assert grouped(tmp_path) == {
        "sandbox": ["a"],
        "sandbox (ppo.kl_coefficient=0.02)": ["b"],
        "sandbox (ppo.kl_coefficient=0.1, pretrain.learning_rate=1.0, 2 more)": ["c"],
    }


def test_a_stage_counts_with_the_recipe_that_it_began_with(tmp_path):
    """The recipe of later stages may change while a run is under way."""
    write_run(tmp_path / "a", found=results())
    run = write_run(tmp_path / "b", stages=("pretrain",))
    other = write_run(tmp_path / "rest", recipe=changed(RECIPE, pretrain={"steps": 7}), stages=("sft",))
    (other / "sft").rename(run / "sft")
    (other).rmdir()
    assert grouped(tmp_path) == {"sandbox": ["a", "b"]}  # pretraining had the same recipe

    write_run(tmp_path / "c", stages=("pretrain",))
    write_run(tmp_path / "rest", recipe=changed(RECIPE, sandbox={"documents": 1}), stages=("sft",))
    (tmp_path / "rest" / "sft").rename(tmp_path / "c" / "sft")
    (tmp_path / "rest").rmdir()
    assert grouped(tmp_path)["sandbox (sft: sandbox.documents=1)"] == ["c"]  # but SFT learned from other records


def test_a_partial_run_is_a_seed_of_its_recipe_and_what_it_lacks_is_named(tmp_path):
    write_run(tmp_path / "full", found=results())
    partial = write_run(tmp_path / "partial", recipe=changed(RECIPE, seed=3), finished=False)
    metrics = partial / "sft" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 60, "lo')  # is being written
    (group,) = run_groups.load_groups(tmp_path)
    full, found = group.runs
    assert (found.seed, found.results, found.answers) == (3, {}, [])
    assert (found.is_finished("pretrain"), found.is_finished("sft"), found.is_finished("ppo")) == (True, False, False)
    text = run_groups.format_groups([group])
    assert "partial, seed 3: pretrain; sft unfinished at step 40, no reward, no ppo_init" in text
    assert "no results.json" in text
    has_results = run_groups.format_missing([group], lambda run: bool(run.results), "results")
    assert has_results == "Without results: partial."
    assert run_groups.format_missing([group], lambda run: True, "results") == ""


def test_runs_with_results_come_first_and_long_values_are_cut(tmp_path):
    write_run(tmp_path / "a", recipe=changed(RECIPE, seed=1))
    write_run(tmp_path / "b", found=results())
    write_run(tmp_path / "c", recipe=changed(RECIPE, pretrain={"import_from": "/a/very/long/path/of/some/model"}))
    assert grouped(tmp_path) == {
        "sandbox": ["b", "a"],
        "sandbox (pretrain.import_from=…/long/path/of/some/model)": ["c"],
    }


def test_a_seed_that_is_there_twice_is_named(tmp_path):
    write_run(tmp_path / "a", found=results())
    write_run(tmp_path / "b", found=results())
    assert "b, seed 0, the same as another run's" in run_groups.format_groups(run_groups.load_groups(tmp_path))


@pytest.mark.parametrize("source", ["files", "e2e"])
def test_runs_on_other_data_are_read_like_others(tmp_path, source):
    recipe = {name: value for name, value in RECIPE.items() if name != "sandbox"}
    write_run(tmp_path / "mine", recipe={**recipe, source: {"text": "texts.jsonl"}})
    write_run(tmp_path / "sandbox", found=results())
    assert grouped(tmp_path) == {"sandbox": ["sandbox"], source: ["mine"]}
    sandbox, mine = (group.runs[0] for group in run_groups.load_groups(tmp_path))
    assert (sandbox.is_simulated, mine.is_simulated, mine.is_human) == (True, False, source == "e2e")


def test_a_folder_may_be_a_run_and_contain_other_things(tmp_path):
    run = write_run(tmp_path / "run", found=results())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("not a run")
    assert grouped(tmp_path) == grouped(run) == {"sandbox": ["run"]}


def test_a_saved_run_is_the_run_with_fewer_answers(tmp_path):
    run = write_run(tmp_path / "run", found=results(), finished=False)
    (run / "evaluate").mkdir()
    (run / "evaluate" / "answers.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (run / "sft" / "checkpoints").mkdir()
    (tmp_path / "saved" / "run").mkdir(parents=True)  # is replaced
    run_groups.save(run, tmp_path / "saved" / "run", prompts=1)
    whole, saved = run_groups.load(run), run_groups.load(tmp_path / "saved" / "run")
    assert saved.answers == whole.answers[:1] == [{"prompt": "a"}]
    for field in ("name", "results", "metrics", "configs", "seconds"):
        assert getattr(saved, field) == getattr(whole, field)
    assert not (tmp_path / "saved" / "run" / "sft" / "checkpoints").exists()


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(DataError, match="expected the folder of a run, found no stage and no results.json in it$"):
        run_groups.load(tmp_path)
    with pytest.raises(DataError, match="expected a folder of runs, found no run in it; see docs/results.md$"):
        run_groups.load_groups(tmp_path)
