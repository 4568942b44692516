"""What the folder of a run says of itself is true, also after a stage was trained again or further."""

import json
import shutil

import pytest

from instructjax import warning_log
from instructjax.reporting import watch
from instructjax.runs import checkpoint, folder
from instructjax.stages import answers, beginning
from instructjax.stages.run import Run
from tests.recipes import DECLARATIONS, LINES, changed, opened, prepare, recipe, save_stage

RESULTS = ("results.json", "report.md", "evaluate/answers.jsonl")


@pytest.fixture
def evaluated(tmp_path):
    """Returns a run whose results describe its sft and ppo."""
    config, workdir = recipe(tmp_path), tmp_path / "run"
    layout = prepare(config, workdir)
    for name in ("sft", "ppo"):
        beginning.note(Run(config, workdir), DECLARATIONS[name])
        save_stage(config, workdir, name, layout.tokenizer)
        (workdir / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (workdir / "evaluate").mkdir()
    for name in RESULTS[1:]:
        (workdir / name).write_text("")
    known = {name: checkpoint.fingerprint(workdir / name / "checkpoints") for name in ("sft", "ppo")}
    results = {"config": "x:smoke", "seed": 0, "models": {"ppo": None}, "checkpoints": known}
    (workdir / "results.json").write_text(json.dumps(results))
    return Run(config, workdir)


def left(run):
    return [name for name in RESULTS if (run.workdir / name).exists()]


def test_a_stage_that_is_trained_further_removes_the_results_that_tell_of_it(evaluated, capsys):
    assert watch.is_finished(evaluated.workdir)
    beginning.note(evaluated, DECLARATIONS["reward"])  # which the results do not describe
    assert left(evaluated) == list(RESULTS)
    beginning.note(evaluated, DECLARATIONS["ppo"])
    assert left(evaluated) == [] and not watch.is_finished(evaluated.workdir)
    assert capsys.readouterr().out.endswith("described earlier weights of ppo and are removed; evaluate again\n")


def test_a_stage_that_is_trained_further_removes_what_it_gave_on_public_tasks(evaluated):
    for stage in ("sft", "ppo"):
        directory = folder.tasks_directory(evaluated.workdir, stage)
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps([{"task": "sst"}]))
    beginning.note(evaluated, DECLARATIONS["ppo"])
    assert folder.read_tasks(evaluated.workdir, ["sft", "ppo"]) == {"sft": [{"task": "sst"}]}


def test_results_of_other_checkpoints_are_not_shown(evaluated):
    save_stage(evaluated.config, evaluated.workdir, "reward", evaluated.layout.tokenizer)
    assert folder.outdated(evaluated.workdir, json.loads((evaluated.workdir / "results.json").read_text())) == []
    shutil.rmtree(evaluated.workdir / "ppo")
    found = json.loads((evaluated.workdir / "results.json").read_text())
    assert folder.outdated(evaluated.workdir, found) == ["ppo"]
    assert not watch.is_finished(evaluated.workdir)


def test_results_without_checkpoints_beside_them_are_shown(evaluated):
    """As in a copy of the small files of a run."""
    found = json.loads((evaluated.workdir / "results.json").read_text())
    (evaluated.workdir / "ppo" / "checkpoints").rename(evaluated.workdir / "elsewhere")
    assert folder.outdated(evaluated.workdir, found) == []


def test_a_stage_that_continues_has_the_recipe_of_its_last_start(evaluated):
    more = changed(evaluated.config, ppo__iterations=77)
    beginning.note(Run(more, evaluated.workdir), DECLARATIONS["ppo"])
    assert json.loads((evaluated.workdir / "ppo" / "config.json").read_text())["ppo"]["iterations"] == 77
    (_, stage) = watch.read_stages(evaluated.workdir)
    (evaluated.workdir / "ppo" / "summary.json").unlink()
    (_, stage) = watch.read_stages(evaluated.workdir)
    assert (stage.name, stage.steps) == ("ppo", 77)


def test_a_batch_that_is_larger_than_all_epochs_says_how_many_epochs_it_makes(evaluated):
    config = changed(evaluated.config, reward__batch_size=512)
    stage = opened(config, evaluated.workdir, "reward")
    with warning_log.kept_in(evaluated.workdir):
        assert stage.steps(LINES[:40]) == 1
        assert opened(evaluated.config, evaluated.workdir, "reward").steps(LINES[:40]) == 5
    (line,) = warning_log.read(evaluated.workdir)
    expected = "reward: 1 x 512 records (reward.batch_size) make 12.8 epochs of the 40 records, not 1 (reward.epochs)"
    assert line.endswith(expected)


def test_half_an_epoch_is_half_of_the_steps(evaluated):
    stage = opened(changed(evaluated.config, reward__epochs=0.5), evaluated.workdir, "reward")
    assert stage.steps(LINES[:40]) == 3  # of 8


def test_warnings_of_a_run_are_kept_and_shown(evaluated, capsys):
    warning_log.warn("before the run")
    with warning_log.kept_in(evaluated.workdir):
        warning_log.warn("ppo, step 3: kl is 11")
    assert capsys.readouterr().out == "warning: before the run\nwarning: ppo, step 3: kl is 11\n"
    (line,) = warning_log.read(evaluated.workdir)
    assert line.endswith(" ppo, step 3: kl is 11") and line[:2] == "20"


def test_answers_are_cut_before_the_first_stop_string():
    assert answers.cut("a b\nc STOP d", ("STOP", "\n")) == "a b"
    assert answers.cut("a b", ("STOP",)) == answers.cut("a b", ()) == "a b"
