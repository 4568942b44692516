"""Training with the instructions of other processors: the same batches, and losses that differ by rounding."""

import os
import pathlib
import subprocess
import sys

import pytest

from instructjax.runs import checkpoint, metrics_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "arithmetic.demonstrations": 500,
    "pretrain.steps": 40,
    "model.d_model": 32,
    "model.d_ff": 128,
    "log.every": 5,
    "log.save_every": 40,
    "log.evaluate_every": 40,
}
INSTRUCTIONS = ("AVX512", "AVX2")  # XLA's names; a processor without AVX-512 has the same program for both


def train(workdir, instructions):
    """Returns the lines of metrics.jsonl, and the fingerprint of the last checkpoint."""
    subprocess.run(
        [
            sys.executable,
            "experiments/pretrain.py",
            "--config=configs/arithmetic.py",
            f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in SMALL.items()),
        ],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"--xla_cpu_max_isa={instructions}"},
        check=True,
        capture_output=True,
    )
    stage = workdir / "pretrain"
    return metrics_file.read(stage / "metrics.jsonl"), checkpoint.fingerprint(stage / "checkpoints")


@pytest.mark.slow
def test_the_same_instructions_give_the_same_bits_and_others_the_same_losses_within_rounding(tmp_path):
    (expected, _), (found, bits) = (train(tmp_path / name, name) for name in INSTRUCTIONS)
    assert train(tmp_path / "again", INSTRUCTIONS[-1])[1] == bits
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(found, expected, strict=True) if "loss" in a]
    assert len(differences) == 8 and max(differences) < 1e-4
