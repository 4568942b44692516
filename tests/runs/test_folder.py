"""The files in the folder of a run show the progress of each stage."""

import pytest

from instructjax import files
from instructjax.errors import CheckpointError, WorkdirError
from instructjax.runs import checkpoint, checkpoint_files, cost, folder
from tests import buckets


def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_stage_without_a_folder_has_neither_begun_nor_ended(tmp_path):
    assert folder.stage_directory(str(tmp_path), "sft") == tmp_path / "sft"
    assert not folder.is_finished(tmp_path, "sft")
    assert folder.began(tmp_path, "sft") == {}
    assert folder.selected_step(tmp_path, "sft") is None


def test_the_summary_is_the_mark_of_a_finished_stage(tmp_path):
    with pytest.raises(CheckpointError) as error:
        folder.finished_checkpoints(tmp_path, "sft")
    assert str(error.value) == f"{tmp_path}/sft: expected the finished stage sft, found none"
    (tmp_path / "sft" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="expected the finished stage sft, found an unfinished one$"):
        folder.finished_checkpoints(tmp_path, "sft")
    touch(tmp_path / "sft" / "summary.json", "{}")
    assert folder.is_finished(tmp_path, "sft") and not folder.is_finished(tmp_path, "reward")
    assert folder.finished_checkpoints(tmp_path, "sft") == tmp_path / "sft" / "checkpoints"


def test_the_choice_and_the_beginning_of_a_stage_are_read(tmp_path):
    touch(tmp_path / "sft" / "selected.json", '{"step": 200}')
    touch(tmp_path / "sft" / "began.json", '{"code": "0.1 abc", "stage": {"name": "sft"}}')
    assert folder.selected_step(tmp_path, "sft") == 200
    assert folder.began(tmp_path, "sft")["stage"] == {"name": "sft"}


def test_a_truncated_file_is_named(tmp_path):
    touch(tmp_path / "sft" / "began.json", '{"code"')
    with pytest.raises(WorkdirError, match="sft/began.json: expected JSON that a run wrote"):
        folder.began(tmp_path, "sft")


@pytest.fixture
def refusing(monkeypatch):
    """Replaces gs:// by a bucket that refuses to be read."""

    def refuse(*_, **__):
        raise RuntimeError("403: no access")

    with buckets.in_memory():
        monkeypatch.setattr(buckets.MemoryBucket, "info", refuse)
        monkeypatch.setattr(buckets.MemoryBucket, "ls", refuse)
        yield "gs://bucket/run"


@pytest.mark.parametrize(
    "read",
    [
        lambda workdir: folder.is_finished(workdir, "sft"),
        lambda workdir: folder.summary(workdir, "sft"),
        lambda workdir: folder.began(workdir, "sft"),
        lambda workdir: folder.selected_step(workdir, "sft"),
        lambda workdir: folder.saved_checkpoints(workdir, "sft"),
        lambda workdir: checkpoint_files.saved_steps(f"{workdir}/sft/checkpoints"),
        lambda workdir: checkpoint.read_meta(f"{workdir}/sft/checkpoints"),
        lambda workdir: files.read_json(f"{workdir}/cost.json"),
        cost.check,
    ],
)
def test_a_bucket_that_cannot_be_read_is_not_taken_for_an_empty_one(refusing, read):
    """Otherwise a run would begin again."""
    with pytest.raises(WorkdirError, match="^gs://bucket/run.*: expected to read the bucket, found RuntimeError: 403"):
        read(refusing)


def test_an_empty_bucket_is_one():
    with buckets.in_memory():
        assert not folder.is_finished("gs://bucket/run", "sft") and folder.began("gs://bucket/run", "sft") == {}
        assert checkpoint_files.saved_steps("gs://bucket/run/sft/checkpoints") == []
        files.write_json("gs://bucket/run/sft/summary.json", {"steps": 3})
        assert folder.is_finished("gs://bucket/run", "sft") and files.exists("gs://bucket/run/sft")
