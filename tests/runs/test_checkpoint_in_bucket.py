"""Checkpoints in a bucket: Orbax's files through gcsfs, arrays through tensorstore, both on a fake server."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from instructjax import files
from instructjax.errors import CheckpointError, DamagedCheckpointError
from instructjax.runs import checkpoint, checkpoint_files
from instructjax.runs.checkpoint import Checkpoints
from tests import buckets

pytestmark = pytest.mark.skipif(not buckets.HAS_GCSFS, reason="needs the extra gcs")


@pytest.fixture(scope="module")
def store():
    with buckets.on_a_server() as store:
        yield store


@pytest.fixture
def directory(request, store):
    """A folder of checkpoints for each test."""
    return files.parse(f"gs://bucket/{request.node.name}/checkpoints", "--workdir")


def state(step):
    return {"params": {"w": jnp.arange(600.0) + step}, "step": jnp.int32(step)}


def save(directory, *steps, keep=None):
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), meta={"step": step})


def assert_restores(directory, step):
    with Checkpoints(directory) as checkpoints:
        found, meta = checkpoints.restore(jax.tree.map(jnp.zeros_like, state(0)))
    assert meta == {"step": step}
    jax.tree.map(np.testing.assert_array_equal, found, state(step))


def test_the_newest_checkpoints_are_kept_and_restored(directory, store):
    save(directory, 1, 2, 3, keep=2)
    assert checkpoint_files.saved_steps(directory) == [2, 3]
    prefix = str(directory).removeprefix("gs://bucket/")
    assert {name.split("/")[2] for name in store.names("bucket", prefix)} == {"2", "3"}
    assert_restores(directory, 3)
    assert checkpoint.read_meta(directory, step=2) == {"step": 2}
    found = checkpoint.restore_params(directory, state(0)["params"], step=2)
    np.testing.assert_array_equal(found["w"], state(2)["params"]["w"])


def test_an_unfinished_checkpoint_does_not_count(directory, store):
    save(directory, 1, 2)
    prefix = str(directory).removeprefix("gs://bucket/")
    del store.objects["bucket"][f"{prefix}/2/commit_success.txt"]  # it is written last
    assert checkpoint_files.saved_steps(directory) == [1]
    assert_restores(directory, 1)
    assert not store.names("bucket", f"{prefix}/2/")
    save(directory, 2)
    assert_restores(directory, 2)


def test_a_damaged_checkpoint_is_found(directory, store):
    save(directory, 1, 2)
    prefix = str(directory).removeprefix("gs://bucket/")
    (data, *_) = (name for name in store.names("bucket", f"{prefix}/2/state/ocdbt.process_0/d/"))
    for name in store.names("bucket", f"{prefix}/2/state/"):
        if "/d/" in name:
            content = bytearray(store.read("bucket", name))
            content[len(content) // 2] ^= 1
            store.objects["bucket"][name].content = bytes(content)
    with pytest.raises(DamagedCheckpointError):
        checkpoint.restore_params(directory, state(0)["params"])
    assert_restores(directory, 1)
    assert data not in store.names("bucket")


def test_a_bucket_that_does_not_exist_is_reported(store):
    expected = "gs://other-bucket/run: expected to write a checkpoint, found FileNotFoundError: "
    with pytest.raises(CheckpointError, match=expected):
        with Checkpoints(files.parse("gs://other-bucket/run", "--workdir")) as checkpoints:
            checkpoints.save(1, state(1), meta={})


def test_a_checkpoint_that_cannot_be_reached_is_not_removed(directory, monkeypatch):
    save(directory, 1, 2)

    def restore(*_, **__):
        raise ValueError("UNAVAILABLE: CURL error Could not resolve hostname")

    with Checkpoints(directory) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", restore)
        with pytest.raises(CheckpointError, match="expected to reach the arrays, found UNAVAILABLE") as error:
            checkpoints.restore(jax.tree.map(jnp.zeros_like, state(0)))
    assert not isinstance(error.value, DamagedCheckpointError)
    assert checkpoint_files.saved_steps(directory) == [1, 2]
    assert_restores(directory, 2)
