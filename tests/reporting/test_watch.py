"""The terminal shows the content of a run's folder."""

import json
import os
import time

import pytest
from rich.console import Console

from instructjax.errors import DataError
from instructjax.reporting import watch
from tests import scripts

CONFIG = {"pretrain": {"steps": 100}, "ppo": {"iterations": 50}, "sft": {"epochs": 2}}


def stage(workdir, name, lines, steps=None):
    """Writes the folder of a stage, which is finished if `steps` are given."""
    folder = workdir / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if steps:
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))
    return folder


def losses(*values):
    return [{"step": 10 * i, "loss": value, "wall_seconds": 60.0 * i} for i, value in enumerate(values)]


def estimate(mean):
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "n": 100}


def results(win_rate):
    judged = {"win_rate_vs_sft": {"heldout": estimate(win_rate), "training": estimate(win_rate)}}
    return json.dumps({"config": "x", "seed": 0, "models": {"ppo": judged, "gpt_prompted": None}})


def shown(*workdirs):
    console = Console(width=160, record=True, file=open(os.devnull, "w"))
    console.print(watch.render(workdirs))
    return console.export_text()


@pytest.fixture
def run(tmp_path):
    stage(tmp_path / "run", "sft", losses(3.0, 2.0), steps=12)
    stage(tmp_path / "run", "pretrain", losses(7.0, 5.0, 4.25))
    stage(tmp_path / "run", "dpo", losses(0.7))
    return tmp_path / "run"


def test_stages_are_in_the_papers_order(run):
    found = watch.read_stages(run)
    assert [(s.name, s.steps, s.finished) for s in found] == [
        ("pretrain", 100, False),
        ("sft", 12, True),
        ("dpo", None, False),
    ]


def test_the_table_shows_steps_time_and_metrics(run):
    rows = {line.split()[0]: line for line in shown(run).splitlines() if line.strip()}
    assert "20 of 100" in rows["pretrain"] and "2:00" in rows["pretrain"] and "loss 4.25" in rows["pretrain"]
    assert "12 steps" in rows["sft"] and "loss 2" in rows["sft"]
    assert "step 0" in rows["dpo"]


def test_a_stage_without_new_metrics_is_called_quiet(run):
    assert "quiet" not in shown(run)
    path = run / "pretrain" / "metrics.jsonl"
    os.utime(path, (0, path.stat().st_mtime - 700))
    (row,) = [line for line in shown(run).splitlines() if "quiet for" in line]
    assert row.startswith("pretrain") and "11:4" in row
    os.utime(run / "sft" / "metrics.jsonl", (0, 0))  # a finished stage is not called quiet
    assert shown(run).count("quiet") == 1


def test_a_finished_run_shows_its_results(run):
    assert not watch.is_finished(run)
    (run / "results.json").write_text(results(0.71))
    assert watch.is_finished(run)
    assert "0.710 ± 0.030" in shown(run)


def test_runs_are_compared_line_by_line(run, tmp_path):
    other = tmp_path / "other"
    stage(other, "pretrain", losses(6.0, 4.0), steps=10)
    for folder, win_rate in ((run, 0.71), (other, 0.65)):
        (folder / "results.json").write_text(results(win_rate))
    text = shown(run, other)
    first, second, *_ = [line for line in text.splitlines() if "loss" in line]
    assert first.split()[:2] == ["pretrain", "run"] and second.split()[0] == "other"
    (row,) = [line for line in text.splitlines() if line.startswith("PPO")]
    assert row.split() == ["PPO", "0.710", "±", "0.030", "0.650", "±", "0.030"]


def test_a_stage_is_named_at_its_first_row_also_if_the_first_run_has_not_begun_it(run, tmp_path):
    for name in ("other", "third"):
        stage(tmp_path / name, "reward", losses(6.0, 4.0), steps=10)
    found = [line.split()[:2] for line in shown(run, tmp_path / "other", tmp_path / "third").splitlines()]
    place = found.index(["reward", "other"])
    assert found[place + 1][0] == "third"


def test_a_folder_that_is_not_a_run_is_rejected(tmp_path):
    with pytest.raises(DataError, match="nowhere: expected the folder of a run, found none$"):
        watch.read_stages(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected the folder of a run, found no stage in it$"):
        watch.read_stages(tmp_path)


def test_the_script_prints_once_if_there_is_no_terminal(run, tmp_path, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # with which rich takes anything for a terminal
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for the next view"))
    assert scripts.run("watch.py", str(run)).count("20 of 100") == 1
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere: expected the folder of a run, found none"),
        ([], "^error: expected the folder of a run, or several, found none$"),
    ):
        with pytest.raises(scripts.Left, match=message) as left:
            scripts.run("watch.py", *arguments)
        assert left.value.code == 2 and str(left.value).count("\n") == 1
