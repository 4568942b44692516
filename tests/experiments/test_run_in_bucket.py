"""The whole recipe in a bucket on a fake server: killed twice, resumed on a new host, and compared with a local run."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from instructjax.runs import digest, metrics_file, speed
from instructjax.runs.folder import PAPER
from tests import buckets, cpus, fake_gcs
from tests.experiments.test_two_processes import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not buckets.HAS_GCSFS, reason="needs the extra gcs")]

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEYS = {**SMALL, "log.every": 5, "log.save_every": 5, "log.evaluate_every": 5, "ppo.iterations": 2}
KEYS |= {"ppo_log.save_every": 1, "ppo_log.evaluate_every": 1, "evaluate.prompts": 6}
WORKDIR = "gs://bucket/runs/a"


def start(script, workdir, tmp_path, *flags, host="host", keys=KEYS, **environment):
    command = [sys.executable, f"experiments/{script}", "--config=configs/sandbox.py:smoke", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *(f"--config.{key}={value}" for key, value in keys.items()), *flags],
        cwd=ROOT,
        env=cpus.environment(
            1,
            JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),  # the same programs for all runs
            PYTHONPATH=str(ROOT),
            XDG_CACHE_HOME=str(tmp_path / host),
        )
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, error = process.communicate(timeout=900)
    assert process.returncode == 0, error[-2000:]
    return output


def kill_before_writing(store, process, name):
    """Kills a process when it has sent all of an object, which is then not stored; waits for it."""

    def kill(found):
        if found.startswith("runs/a/") and found.endswith(name):
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise ConnectionAbortedError

    store.before_write = kill
    process.communicate(timeout=900)
    store.before_write = lambda name: None
    assert process.returncode == -signal.SIGKILL


def facts(read, stages=PAPER):
    """Returns what must be equal: digests of all arrays, metrics without times, and the answers."""
    found = {"answers": read("evaluate/answers.jsonl"), "selected": json.loads(read("sft/selected.json"))["reward"]}
    for stage in stages:
        lines = [json.loads(line) for line in read(f"{stage}/metrics.jsonl").decode().splitlines()]
        last = json.loads(read(f"{stage}/summary.json"))["steps"]
        found[stage] = (
            [{name: value for name, value in line.items() if name not in speed.MEASURED} for line in lines],
            digest.verify_checksum(json.loads(read(f"{stage}/checkpoints/{last}/meta/metadata")))["arrays"],
        )
    return found


def test_a_run_in_a_bucket_is_killed_and_resumed(tmp_path):
    finish(start("reproduce.py", tmp_path / "local", tmp_path))
    expected = facts(lambda name: (tmp_path / "local" / name).read_bytes())
    with fake_gcs.serving(buckets.BUCKET) as (store, server):
        first = start("reproduce.py", WORKDIR, tmp_path, **server)
        kill_before_writing(store, first, "pretrain/checkpoints/15/commit_success.txt")
        assert "runs/a/pretrain/checkpoints/15/meta/metadata" in store.names("bucket")
        second = start("reproduce.py", WORKDIR, tmp_path, **server)
        kill_before_writing(store, second, "ppo/checkpoints/2/commit_success.txt")
        shutil.rmtree(tmp_path / "host")  # the next host has another disk
        output = finish(start("reproduce.py", WORKDIR, tmp_path, host="next", **server))
        assert "did not end its run here; make sure that it has stopped" in output
        assert f"{WORKDIR}/report.md" in output
        found = facts(lambda name: store.read("bucket", f"runs/a/{name}"))
        names = store.names("bucket", "runs/a/")
    assert [line["step"] for line in expected["pretrain"][0]] == [0, 5, 10, 15, 20]
    assert found == expected
    assert not [name for name in names if name.endswith(".running") or ".array_record" in name]
    assert not (ROOT / "gs:").exists()


def test_two_hosts_share_a_bucket(tmp_path):
    """Each host prepares its own records. Only pretraining, as `test_two_processes.py` has the rest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    keys = {**KEYS, "pretrain.steps": 10}
    with fake_gcs.serving(buckets.BUCKET) as (store, server):
        hosts = [
            start(
                *("pretrain.py", WORKDIR, tmp_path, coordinator, f"--process_id={i}", "--process_count=2"),
                host=f"host{i}",
                keys=keys,
                **server,
            )
            for i in range(2)
        ]
        printed = [process.communicate(timeout=900) for process in hosts]
        assert [process.returncode for process in hosts] == [0, 0], "\n".join(error[-2000:] for _, error in printed)
        assert "runs/a/pretrain/checkpoints/10/commit_success.txt" in store.names("bucket")
        lines = store.read("bucket", "runs/a/pretrain/metrics.jsonl").decode().splitlines()
    manifests = [tmp_path / f"host{i}/instructjax/gs/bucket/runs/a/data/text/1.0.0/manifest.json" for i in range(2)]
    assert manifests[0].read_text() == manifests[1].read_text()
    finish(start("pretrain.py", tmp_path / "local", tmp_path, keys=keys))
    expected = metrics_file.read(tmp_path / "local" / "pretrain" / "metrics.jsonl")
    for here, there in zip(map(json.loads, lines), expected, strict=True):
        assert here["step"] == there["step"] and here.get("loss", 0) == pytest.approx(there.get("loss", 0), rel=2e-3)
