"""The steps of docs/own_data.md, with four small files."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests import recipes

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ("text", "demonstrations", "rankings", "prompts")


def script(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / name), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.slow
def test_all_stages_run_on_the_users_own_files(tmp_path):
    recipes.recipe(tmp_path)  # writes the files
    flags = [f"--config.files.{name}={tmp_path / name}.jsonl" for name in FILES]
    flags += ["--config.data.shared_prompts=keep"]  # the few prompts are in all splits
    flags += ["--config.tokenizer.vocab_size=300"]  # for so little text, as docs/own_data.md says
    run = f"--workdir={tmp_path / 'run'}"
    finished = script("reproduce.py", "--config=configs/own.py:tiny", run, *flags)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "report.md").exists()
    for stage in ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx"):
        assert (tmp_path / "run" / stage / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "the fox" in script("sample.py", run, "--prompt=the fox").stdout
    assert "10 steps" in script("watch.py", str(tmp_path / "run")).stdout
