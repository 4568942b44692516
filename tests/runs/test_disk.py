"""Full and read-only disks: real ones, small and in memory."""

import contextlib
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import CheckpointError, WorkdirError
from instructjax.runs import lock
from instructjax.runs.checkpoint import Checkpoints
from tests import small_disks

MIB = 2**20


@pytest.fixture
def disk(tmp_path):
    """Returns mount(options), which mounts a small file system."""
    with contextlib.ExitStack() as stack:
        yield lambda options: stack.enter_context(small_disks.mounted(tmp_path / "disk", options))


def state(value):
    """Returns three quarters of a MiB that cannot be compressed."""
    return {"w": jnp.asarray(np.random.default_rng(value).normal(size=3 * MIB // 16), jnp.float32)}


def test_a_full_disk_costs_the_checkpoint_that_does_not_fit(disk):
    place = disk("size=2500k")
    with Checkpoints(place / "checkpoints") as checkpoints:
        checkpoints.save(1, state(1), meta={})
    (place / "others").write_bytes(b"\0" * MIB)
    with pytest.raises(CheckpointError) as error:
        with Checkpoints(place / "checkpoints") as checkpoints:
            checkpoints.save(2, state(2), meta={})
            checkpoints.wait()
    message = str(error.value)
    assert message.startswith(f"{place}/checkpoints: expected to write a checkpoint, found ") and "\n" not in message
    with Checkpoints(place / "checkpoints") as checkpoints:
        restored, _ = checkpoints.restore(state(0))
        assert checkpoints.latest_step() == 1
        np.testing.assert_array_equal(restored["w"], state(1)["w"])
        (place / "others").unlink()
        checkpoints.save(2, state(2), meta={})
    with Checkpoints(place / "checkpoints") as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(state(0))[0]["w"], state(2)["w"])


def test_a_read_only_disk_is_reported(disk):
    place = disk("ro")
    with pytest.raises(WorkdirError, match="expected a folder that can be written to, found: Read-only file system"):
        with lock.hold(place / "run"):
            pass


PROGRAM = """
import sys
import command_line
import numpy as np
from instructjax.runs.checkpoint import Checkpoints


def main(run):
    with Checkpoints(run.workdir / "checkpoints") as checkpoints:
        for step in range(1, 6):
            values = np.random.default_rng(step).normal(size=(4, 60_000))
            checkpoints.save(step, {f"w{i}": row for i, row in enumerate(values)}, meta={})


command_line.read(main)
"""


def test_a_script_tells_of_a_full_disk_in_one_line(disk, tmp_path):
    (tmp_path / "script.py").write_text(PROGRAM)
    root = pathlib.Path(__file__).resolve().parents[2]
    finished = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), f"--workdir={disk('size=3000k')}/run"],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'experiments'}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1, finished.stderr[:2000]
