"""The smoke variant of configs/e2e.py, from pretraining to the report, in its own process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.local_data import ABSENT, DATA, E2E

ROOT = pathlib.Path(__file__).resolve().parents[2]


def reproduce(workdir, directory):
    arguments = ["--config=configs/e2e.py:smoke", f"--config.e2e.directory={directory}", f"--workdir={workdir}"]
    return subprocess.run(
        [sys.executable, "experiments/reproduce.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_folder_of_the_data_must_be_named(tmp_path):
    process = reproduce(tmp_path, "")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: e2e.directory: expected the folder")
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.slow
@pytest.mark.skipif(not E2E.is_dir() or not (DATA / "storybooks").is_dir(), reason=ABSENT)
def test_all_stages_run_on_human_records(tmp_path):
    process = reproduce(tmp_path, DATA)
    assert process.returncode == 0, process.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    human = results["human"]
    for kind in ("single", "averaged"):
        for measure in ("reward_model", "length", "difference"):
            estimate = human["accuracy"][kind][measure]
            assert estimate["low"] < estimate["mean"] < estimate["high"]
        assert human["accuracy"][kind]["length"]["mean"] > 0.55  # raters of quality prefer the longer text
    # The raters' agreement is about 67 %, as the release reports.
    assert human["accuracy"]["single"]["raters"]["mean"] == pytest.approx(0.67, abs=0.05)
    assert set(human["facts_stated"]) == {*results["models"], "references"}
    assert human["facts_stated"]["references"]["mean"] > 0.88
    assert results["models"]["ppo"]["true_quality"] is None  # it is unknown
    for stage in ("ppo", "ppo_ptx"):
        first = json.loads((tmp_path / stage / "metrics.jsonl").read_text().splitlines()[1])
        assert first["first_ratio_deviation"] < 1e-5
        assert abs(first["kl"]) < 1e-5
    answers = [json.loads(line) for line in (tmp_path / "evaluate" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == results["models"]["sft"]["reward"]["n"]
    assert "facts stated" in (tmp_path / "report.md").read_text()
