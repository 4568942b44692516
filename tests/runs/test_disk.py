"""Full and read-only disks: real ones, small and in memory."""

import contextlib

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
