"""From a model of the package index to a report: configs/smollm2.py:smoke on human records, in its own process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import smollm2
from tests.local_data import ABSENT, DATA

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = {
    "demonstrations": ("dolly_15k/dolly_15k.jsonl.gz", "oasst1_en/validation_demonstrations.jsonl.gz"),
    "rankings": ("oasst1_en/validation_rankings.jsonl.gz", "gpt3_explanations_k5/rankings.jsonl.gz"),
    "prompts": ("dolly_15k/dolly_15k.jsonl.gz", "oasst1_en/validation_demonstrations.jsonl.gz"),
    "text": ("storybooks/storybooks.jsonl.gz",),
}


@pytest.mark.slow
@smollm2.needed
@pytest.mark.skipif(not all((DATA / file).is_file() for named in FILES.values() for file in named), reason=ABSENT)
def test_a_whole_run_starts_from_the_package(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    run = tmp_path / "run"
    named = (f"--config.files.{kind}={','.join(str(DATA / file) for file in found)}" for kind, found in FILES.items())
    process = subprocess.run(
        [
            *(sys.executable, "experiments/reproduce.py", "--config=configs/smollm2.py:smoke", f"--workdir={run}"),
            *("--without=ppo", "--config.files.fields=user=tree, published_split=split", *named),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    results = json.loads((run / "results.json").read_text())
    assert {model for model, found in results["models"].items() if found} == {"gpt", "sft", "ppo_ptx"}
    assert results["models"]["ppo_ptx"]["reward"]["n"] == 4
    assert results["rankings"]["accuracy"]["length"] and not (run / "ppo").exists()
    imported = json.loads((run / "pretrain" / "summary.json").read_text())["imported"]
    assert imported == str(smollm2.FILE)
    assert "test prompts, drawn at random" in (run / "report.md").read_text()
