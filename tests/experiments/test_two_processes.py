"""The whole recipe, from pretraining to the report, by two processes with four devices each, and by one process."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from instructjax.runs import metrics_file
from instructjax.runs.folder import PAPER

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "sandbox.documents": 300,
    "sandbox.demonstrations": 100,
    "sandbox.reward_prompts": 100,
    "sandbox.prompts": 120,
    "sandbox.users": 40,
    "sandbox.validation_prompts": 8,
    "model.d_model": 32,
    "model.d_ff": 64,
    "pretrain.steps": 20,
    "sft.epochs": 1,
    "sft.batch_size": 32,
    "sft.selection_prompts": 8,
    "comparisons.prompts": 40,
    "reward.epochs": 1,
    "ppo_init.epochs": 1,
    "ppo_init.batch_size": 32,
    "ppo.iterations": 1,
    "ppo.batch_size": 16,
    "evaluate.prompts": 12,
    "evaluate.batch_size": 16,
    "evaluate.text_windows": 8,
}


def start(workdir, devices, *flags):
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    keys = [f"--config.{key}={value}" for key, value in SMALL.items()]
    return subprocess.Popen(
        [
            sys.executable,
            "experiments/reproduce.py",
            "--config=configs/sandbox.py:smoke",
            f"--workdir={workdir}",
            *keys,
            *flags,
        ],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    two = [start(tmp_path / "two", 4, coordinator, f"--process_id={i}", "--process_count=2") for i in range(2)]
    printed = [process.communicate(timeout=900) for process in two]
    assert [process.returncode for process in two] == [0, 0], "\n".join(error[-2000:] for _, error in printed)
    # The first process alone prints the table. Gloo's threads write to the same output, in the middle of a line too.
    assert ["PPO-ptx" in output for output, _ in printed] == [True, False]

    one = start(tmp_path / "one", 1)
    output, error = one.communicate(timeout=600)
    assert one.returncode == 0, error[-2000:]
    for stage in PAPER:
        found, expected = (metrics_file.read(tmp_path / name / stage / "metrics.jsonl") for name in ("two", "one"))
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        names = {"loss", "accuracy", "validation_loss", "reward", "response_tokens", "policy_loss", "ptx_loss"}
        for here, there in zip(found, expected, strict=True):
            assert here.keys() == there.keys()
            for name in names & there.keys():
                assert here[name] == pytest.approx(there[name], rel=2e-3, abs=2e-3), (stage, name)
    here, there = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert here.keys() == there.keys() and here["models"].keys() == there["models"].keys()
    for model, entry in there["models"].items():
        if entry:
            assert here["models"][model]["pretrain_loss"] == pytest.approx(entry["pretrain_loss"], rel=2e-3)
