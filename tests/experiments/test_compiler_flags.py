"""The scripts set flags of XLA for GPUs, leave those that the user has set, and print what the package logs."""

import os
import pathlib
import subprocess
import sys

import command_line
import pytest

from instructjax import accelerators

ROOT = pathlib.Path(__file__).resolve().parents[2]
SET = "--xla_gpu_enable_latency_hiding_scheduler=true"


@pytest.mark.parametrize(
    ("plugins", "before", "after"),
    [
        ((), "", ""),
        (("jax_cuda12_plugin",), "", SET),
        (("jax_cuda13_plugin",), "--xla_gpu_autotune_level=4", f"--xla_gpu_autotune_level=4 {SET}"),
        (("jax_cuda12_plugin",), SET.replace("true", "false"), SET.replace("true", "false")),
    ],
)
def test_flags_are_added_if_there_is_a_plugin_and_they_are_not_given(plugins, before, after, monkeypatch):
    monkeypatch.setattr(accelerators.importlib.util, "find_spec", lambda name: name in plugins)
    monkeypatch.setenv("XLA_FLAGS", before)
    command_line.set_compiler_flags()
    assert os.environ["XLA_FLAGS"] == after


def test_the_compiler_knows_the_flags():
    """XLA aborts a process whose XLA_FLAGS it does not know."""
    flags = " ".join(f"{name}={value}" for name, value in command_line.GPU_FLAGS.items())
    program = [sys.executable, "-c", "import jax; print(jax.jit(lambda x: x + 1)(1))"]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


def test_a_script_prints_what_the_package_logs(tmp_path):
    """Such as why attention does not use a fused kernel. What other packages log is not printed."""
    program = (
        "import command_line, absl.logging; from instructjax.models import attention;"
        "command_line.read(lambda run: (attention.LOG.info('attention is %s', 'slow'), absl.logging.info('noise')))"
    )
    command = [sys.executable, "-c", program, "--config=configs/sandbox.py:smoke", f"--workdir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": "experiments", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "note: attention is slow\n"), done.stderr
    assert "noise" not in done.stderr


def test_help_is_no_error():
    command = [sys.executable, "experiments/sft.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config:" in done.stdout
