"""The workflow and the hooks run the checks of `.ci/run`, and its scripts can run."""

import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_workflow_calls_the_checks_on_each_supported_python():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.12"]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / ".ci").iterdir()))
def test_bash_reads_the_scripts_and_they_stop_at_errors(script):
    path = ROOT / ".ci" / script
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert "\nset -euo pipefail\n" in path.read_text() and path.stat().st_mode & 0o111


def test_each_hook_is_a_check():
    checks = (ROOT / ".ci" / "run").read_text().splitlines()
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == [line for line in checks if line in entries]
