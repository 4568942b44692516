"""Paths of users, and whole files in buckets, which cannot append, rename or lock."""

import gzip
import json
import os
import sys
import time

import numpy as np
import pytest
from etils import epath

from instructjax import files, records
from instructjax.data import preparation
from instructjax.errors import CheckpointError, DataError, InputError, RecordError, WorkdirError
from instructjax.evaluation.tasks import results as task_results
from instructjax.evaluation.tasks.task import Example, Output
from instructjax.models import pretrained
from instructjax.records import Ranking, Text
from instructjax.reporting import curves, run_groups, watch
from instructjax.runs import lock, metrics_file
from instructjax.runs.metrics_file import MetricsWriter
from instructjax.stages import prepare
from instructjax.stages.run import Run
from instructjax.text import tokenizer_files
from tests import buckets
from tests.buckets import MemoryBucket
from tests.recipes import RECORDS, changed, recipe
from tests.reporting import run_folders


@pytest.fixture(params=["memory", "server"])
def bucket(request, tmp_path, monkeypatch):
    """A folder in an empty bucket: in memory, or on a fake server that gcsfs asks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "server" and not buckets.HAS_GCSFS:
        pytest.skip("needs the extra gcs")
    with buckets.in_memory() if request.param == "memory" else buckets.on_a_server():
        yield files.parse("gs://bucket/runs/a", "--workdir")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A folder in an empty bucket in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with buckets.in_memory():
        yield files.parse("gs://bucket/runs/a", "--workdir")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Paths.


def test_the_home_directory_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.parse("~/run", "--workdir") == tmp_path / "run"
    assert Run(None, "~/run").workdir == tmp_path / "run"
    assert os.fspath(files.parse("a/~/b", "--workdir")) == "a/~/b"


def test_paths_of_a_recipe_are_expanded(monkeypatch, tmp_path):
    config = recipe(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    short = {f"files__{name}": f"~/{name}.jsonl" for name in RECORDS}
    layout = Run(changed(config, **short), tmp_path / "run").layout
    layout.tokenizer.save(tmp_path / "mine.model")
    again = Run(changed(config, **short, tokenizer__path="~/mine.model", data__prepared="~/sets"), tmp_path / "other")
    assert again.layout.tokenizer.fingerprint == layout.tokenizer.fingerprint
    assert "text" in names(tmp_path / "sets") and "text" not in names(tmp_path / "other" / "data")


@pytest.mark.parametrize("path", ["hdfs://a/b", "GS://a/b", "file:///a", "://a"])
def test_other_schemes_are_refused(path):
    with pytest.raises(InputError) as error:
        files.parse(path, "files.text")
    expected = "files.text: expected a local path or gs://BUCKET/PATH or s3://BUCKET/PATH, found "
    assert str(error.value) == expected + path


@pytest.mark.parametrize("path", ["gs://", "gs:///run", "s3://"])
def test_a_bucket_is_named(path):
    with pytest.raises(InputError, match=r"expected (gs|s3)://BUCKET/PATH, found "):
        files.parse(path, "files.text")


@pytest.mark.parametrize(("path", "package", "extra"), [("gs://a/b", "gcsfs", "gcs"), ("s3://a/b", "s3fs", "s3")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, path, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        files.parse(path, "files.text")
    found = f"files.text: expected the package {package} to open {path}, found none; pip install 'instructjax[{extra}]'"
    assert str(error.value) == found


# Files.


def test_a_file_in_a_package_is_found_without_importing_the_package(monkeypatch, tmp_path):
    (tmp_path / "weights_of_mine").mkdir()
    (tmp_path / "weights_of_mine" / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    found = files.parse("package://weights_of_mine/model.gguf", "--source", files.MODEL_SCHEMES)
    assert found == tmp_path / "weights_of_mine" / "model.gguf"
    with pytest.raises(InputError, match="^--source: expected the package others, which has model.gguf, found none$"):
        files.parse("package://others/model.gguf", "--source", files.MODEL_SCHEMES)


def test_files_are_written_whole_under_their_own_name_only(bucket):
    files.write_json(bucket / "a.json", {"a": 1})
    files.write_json(bucket / "a.json", {"a": 2})
    assert files.read_json(bucket / "a.json") == {"a": 2}
    assert names(bucket) == ["a.json"]


def test_a_missing_file_is_reported(bucket):
    with pytest.raises(WorkdirError, match=r"gs://bucket/runs/a/none.json: expected a file that a run wrote, found: "):
        files.read_json(bucket / "none.json")


def test_a_bucket_that_cannot_be_written_to_is_reported(memory, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403: no\npermission")

    monkeypatch.setattr(MemoryBucket, "_open", refuse)
    found = "found RuntimeError: 403: no permission"
    with pytest.raises(WorkdirError) as error:
        files.write_bytes(memory / "a", b"")
    assert str(error.value) == f"gs://bucket/runs/a/a: expected to write to the bucket, {found}"
    with pytest.raises(WorkdirError) as error, lock.hold(memory):
        raise AssertionError("held")
    assert str(error.value).endswith(f"expected to write to the bucket, {found}")


def test_a_growing_file_is_uploaded_now_and_then(memory, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = files.GrowingFile(memory / "log", b"first\n", warn=pytest.fail)
    for line in (b"a\n", b"b\n"):
        file.write(line)
    assert (memory / "log").read_bytes() == b"first\n"
    file.flush()
    file.flush()
    assert (memory / "log").read_bytes() == b"first\na\nb\n" and len(MemoryBucket.writes) == 2
    file.write(b"c\n")
    now += files.UPLOAD_SECONDS
    file.write(b"d\n")
    assert (memory / "log").read_bytes() == b"first\na\nb\nc\nd\n" and len(MemoryBucket.writes) == 3
    file.write(b"e\n")
    file.close()
    assert (memory / "log").read_bytes() == b"first\na\nb\nc\nd\ne\n" and len(MemoryBucket.writes) == 4


def test_a_failed_upload_is_warned_of_and_tried_again(memory, monkeypatch):
    now, warnings, write = time.monotonic(), [], files.write_bytes
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = files.GrowingFile(memory / "log", b"first\n", warn=warnings.append)

    def fail(*_):
        raise WorkdirError("the bucket is away")

    now += files.UPLOAD_SECONDS
    monkeypatch.setattr(files, "write_bytes", fail)
    file.write(b"a\n")
    assert warnings == [f"the bucket is away; trying again in {files.UPLOAD_SECONDS} s"]
    monkeypatch.setattr(files, "write_bytes", write)
    file.close()
    assert (memory / "log").read_bytes() == b"first\na\n"


def test_outputs_on_a_task_in_a_bucket_are_continued(memory):
    examples, head = [Example("a"), Example("b")], {"task": "t"}
    for number, known in enumerate([{}, {0: Output("answer 0")}]):
        with task_results.continued(memory / "t.jsonl", head, known) as append:
            append([(number, Output(f"answer {number}"))])
    known = task_results.parse(task_results.read(memory / "t.jsonl"), memory / "t.jsonl", examples, head)
    assert known == {0: Output("answer 0"), 1: Output("answer 1")}


def test_no_line_of_metrics_is_lost(bucket):
    with MetricsWriter(bucket) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": 1 / step})
        writer.flush()  # before a checkpoint of step 5
        before = metrics_file.read(writer.path)
        writer.write(6, {"loss": 0.0})
    assert [line["step"] for line in before] == [1, 2, 3, 4, 5]
    with MetricsWriter(bucket, first_step=4) as writer:
        assert writer.last("loss") == pytest.approx(1 / 3, rel=1e-5)
        writer.write(4, {"loss": 0.25})
    assert [line["step"] for line in metrics_file.read(bucket / "metrics.jsonl")] == [1, 2, 3, 4]
    assert names(bucket / "tensorboard") == [f"events.out.tfevents.000000000{i}" for i in (1, 2)]
    curves.redraw(bucket)
    assert (bucket / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz"])
def test_records_are_read_from_a_bucket(bucket, name):
    lines = [{"text": "word " * length} for length in (3, 300_000, 5)]  # the middle one is longer than a block
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    files.write_bytes(bucket / name, gzip.compress(content) if name.endswith("gz") else content)
    assert [record.text for record in records.read(bucket / name, Text)] == [line["text"] for line in lines]
    with pytest.raises(RecordError, match=f"gs://bucket/runs/a/none.{name}: expected a file of Text records, found no"):
        records.read(bucket / f"none.{name}", Text)


def test_records_that_cannot_be_read_are_reported(memory, monkeypatch, tmp_path):
    files.write_bytes(memory / "text.jsonl", b'{"text": "a"}')

    def refuse(*_):
        raise RuntimeError("401: no\ncredentials")

    monkeypatch.setattr(buckets._File, "_fetch_range", refuse)
    with pytest.raises(RecordError) as error:
        records.read(memory / "text.jsonl", Text)
    found = "gs://bucket/runs/a/text.jsonl: expected a file that can be read, found RuntimeError: 401: no credentials"
    assert str(error.value) == found
    # A fingerprint without the file would be that of other records.
    with pytest.raises(RecordError, match="expected a file that can be read, found RuntimeError: 401"):
        preparation.prepare(Text, [memory / "text.jsonl"], tmp_path, name="text", validation=0, test=0)
    assert not (tmp_path / "text" / "manifest.json").exists()


def test_a_line_that_is_too_long_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE", 2**10)
    files.write_bytes(bucket / "text.jsonl", b'{"text": "' + b"a" * 2**21)
    with pytest.raises(RecordError, match="text.jsonl:1: expected a line of at most 1024 bytes, found a longer one"):
        records.read(bucket / "text.jsonl", Text)


def test_weights_are_written_and_read(bucket):
    pytest.importorskip("safetensors", reason="needs the extra huggingface")
    tensors = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in ("float32", "float16", "bfloat16")}
    pretrained.write(bucket / "model", {"model_type": "gpt2"}, tensors, {"vocab.json": b"{}"})
    assert names(bucket / "model") == ["config.json", "model.safetensors", "vocab.json"]
    assert pretrained.read_config(bucket / "model") == {"model_type": "gpt2"}
    found = pretrained.read_tensors(bucket / "model")
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(np.asarray(tensor), tensors[name], strict=True)


def test_runs_are_read_and_copied(bucket, tmp_path):
    run_folders.write_run(tmp_path / "local")
    run_groups.save(tmp_path / "local", bucket / "copy")
    run_groups.save(bucket / "copy", bucket / "copy2")
    found = run_groups.load(bucket / "copy2")
    assert found.metrics == run_groups.load(tmp_path / "local").metrics and found.metrics
    assert [len(group.runs) for group in run_groups.load_groups(bucket)] == [2]
    assert [stage.lines for stage in watch.read_stages(bucket / "copy2")] == list(found.metrics.values())


# The records of a run.


def in_bucket(run, config):
    """Returns the recipe with its records in the folder of a bucket."""
    for name in RECORDS:
        files.write_bytes(run / f"{name}.jsonl", epath.Path(config.files[name]).read_bytes())
    return changed(config, **{f"files__{name}": f"{run}/{name}.jsonl" for name in RECORDS})


def test_each_host_prepares_records_of_its_own(bucket, tmp_path, monkeypatch):
    config = in_bucket(bucket / "records", recipe(tmp_path))
    run = Run(config, bucket)
    fingerprint = run.layout.tokenizer.fingerprint
    whole = [".begun", "checked.json", "config.json", "overlap.json", "report.md", "tokenizer.model"]
    assert names(bucket / "data") == whole
    assert run.prepared_folder == tmp_path / "cache" / "instructjax" / "gs" / "bucket" / "runs" / "a" / "data"
    expected = Run(recipe(tmp_path), tmp_path / "local").records(Text, "train")
    assert [record.text for record in run.records(Text, "train")] == [record.text for record in expected]
    # Another host finds only the bucket.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = Run(config, bucket)
    assert again.layout.tokenizer.fingerprint == fingerprint and again.prepared_folder != run.prepared_folder
    assert list(again.records(Text, "train")) == list(run.records(Text, "train"))
    assert tokenizer_files.load(bucket / "data" / "tokenizer.model").fingerprint == fingerprint


def test_collected_rankings_are_in_the_bucket_and_those_of_a_removed_run_are_not_used(memory, tmp_path, monkeypatch):
    config = recipe(tmp_path)
    rankings = records.read(config.files.rankings, Ranking)
    run = Run(config, memory)
    monkeypatch.setattr(type(run.source), "files", without_rankings(type(run.source).files))
    assert not run.has(Ranking)
    prepare.add_rankings(run, rankings)
    assert run.has(Ranking) and Run(config, memory).has(Ranking)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert Run(config, memory).has(Ranking)
    memory.rmtree()
    assert not Run(config, memory).has(Ranking)


def without_rankings(method):
    """Replaces the rankings of a source by those that the run has collected, if it has."""

    def found(self, kind, folder):
        collected = folder / "rankings.jsonl"
        return method(self, kind, folder) if kind is not Ranking else [collected] * collected.exists()

    return found


def test_the_folder_of_prepared_records_is_of_one_run(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    config = changed(recipe(tmp_path), data__prepared=str(tmp_path / "sets"))
    _ = Run(config, tmp_path / "a").layout
    with pytest.raises(DataError) as error:
        _ = Run(config, tmp_path / "b").layout
    found = f"found the records of {tmp_path}/a in {tmp_path}/sets"
    assert str(error.value) == f"data.prepared: expected a folder for {tmp_path}/b, {found}"
    with pytest.raises(DataError) as error:
        _ = Run(changed(config, data__prepared=str(tmp_path / "mine")), tmp_path / "b").layout
    assert str(error.value) == f"data.prepared: expected a new or empty folder, found other files in {tmp_path}/mine"
    moved = changed(config, data__prepared=str(tmp_path / "elsewhere"))  # a run may continue with another folder
    assert len(Run(moved, tmp_path / "a").records(Text, "train")) == 20


# The lock.


def test_a_second_run_on_this_host_is_refused_and_a_killed_one_is_mentioned(bucket, capsys):
    with lock.hold(bucket):
        assert (bucket / ".running").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(WorkdirError) as error, lock.hold(bucket):
            raise AssertionError("both hold it")
    expected = f"{bucket}: expected a folder without another run, found one of process {os.getpid()}"
    assert str(error.value) == expected
    assert not (bucket / ".running").exists() and capsys.readouterr().out == ""
    files.write_text(bucket / ".running", "process 7 on host")  # what a SIGKILL leaves
    with lock.hold(bucket):
        told = "process 7 on host did not end its run here; make sure that it has stopped"
        assert capsys.readouterr().out == f"warning: gs://bucket/runs/a: {told}\n"


def test_an_export_that_failed_in_a_bucket_can_be_tried_again(memory, monkeypatch):
    pytest.importorskip("safetensors", reason="needs the extra huggingface")
    model = {"model_type": "gpt2"}, {"a": np.arange(6.0)}, {"vocab.json": b"{}"}
    write_bytes = pretrained.write_bytes

    def fail(path, content):
        if path.name == "config.json":
            raise WorkdirError("503")
        write_bytes(path, content)

    monkeypatch.setattr(pretrained, "write_bytes", fail)
    with pytest.raises(WorkdirError, match="503"):
        pretrained.write(memory / "model", *model)
    monkeypatch.undo()
    pretrained.write(memory / "model", *model)
    assert pretrained.read_config(str(memory / "model")) == {"model_type": "gpt2"}
    with pytest.raises(CheckpointError, match="expected no folder, or an empty one"):
        pretrained.write(memory / "model", *model)  # a complete one is not overwritten
