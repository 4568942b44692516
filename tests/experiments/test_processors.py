"""Training with the instructions of other processors: the same batches, and losses that differ by rounding."""

import logging
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
# XLA's names of vector instructions; a processor without AVX-512 gives the first two the same program.
INSTRUCTIONS = ("AVX512", "AVX2", "SSE4_2")


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
    trained = {name: train(tmp_path / name, name) for name in INSTRUCTIONS}
    again = train(tmp_path / "again", INSTRUCTIONS[-1])
    assert again[1] == trained[INSTRUCTIONS[-1]][1]
    expected, _ = trained[INSTRUCTIONS[0]]
    for name in INSTRUCTIONS[1:]:
        found, _ = trained[name]
        differences = [abs(a["loss"] - b["loss"]) for a, b in zip(found, expected, strict=True) if "loss" in a]
        logging.getLogger(__name__).info("%s: losses differ by up to %.2g", name, max(differences))
        assert max(differences) < 1e-3
        assert [line.get("padding") for line in found] == [line.get("padding") for line in expected]  # the same batches
