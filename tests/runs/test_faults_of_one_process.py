"""Faults that only one of two processes sees: both end, or go on, in the same way and within seconds."""

import re

import pytest

from tests.runs.test_processes import run_code

BEGIN = """
import errno, os, pathlib, shutil, signal, sys, threading, time
from etils import epath
from tests.runs import small_run
from instructjax.errors import InputError, Interrupted
from instructjax.runs import checkpoint, checkpoint_files, interruption, metrics_file, processes
address, index, file = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "w", buffering=1)
folder = pathlib.Path(sys.argv[3]).parent
"""

DAMAGED = (
    BEGIN
    + """
def damaged(name, **cut):
    # A copy of the run in which shards of processes in some checkpoints are cut.
    def copy():
        shutil.copytree(folder / "whole", folder / name)
        (folder / name / "summary.json").unlink()
        for step, process in cut.items():
            state = folder / name / "checkpoints" / step.strip("_") / "state"
            shard = max((state / f"ocdbt.process_{process}" / "d").iterdir(), key=lambda path: path.stat().st_size)
            shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    processes.first(copy)
    return folder / name

def resume(directory):
    made = []
    try:
        digests = small_run.train(directory, made=made)
        saved = checkpoint_files.saved_steps(directory / "checkpoints")
        lines = [line["loss"] for line in metrics_file.read(directory / "metrics.jsonl")]
        print(made, saved, digests == whole, lines == losses, file=file)
    except Exception as error:
        print(type(error).__name__, error, file=file)

small_run.start(address, index)
whole = small_run.train(folder / "whole")
losses = [line["loss"] for line in metrics_file.read(folder / "whole" / "metrics.jsonl")]
resume(damaged("a_shard", _8=1))
resume(damaged("another_shard", _8=0))
resume(damaged("no_whole", _8=1, _6=0))

# Process 1 reads other bits than process 0, as from a bad cache. Then it cannot read one file at all.
read_arrays, read_json = checkpoint_files._restore, checkpoint_files._read_json
def flipped(path, template, item):
    read = read_arrays(path, template, item)
    return {**read, "step": read["step"] + 1} if path.parent.name == "8" and index == 1 else read
checkpoint_files._restore = flipped
resume(damaged("other_bits"))
checkpoint_files._restore = read_arrays
def unreadable(path):
    if index == 1:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return read_json(path)
checkpoint_files._read_json = unreadable
resume(damaged("unreadable"))
"""
)


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_both(tmp_path):
    first, second = run_code(tmp_path, DAMAGED)
    resumed = "[7, 8] [6, 8] True True"
    assert [first[i] for i in (0, 1, 3)] == [second[i] for i in (0, 1, 3)] == [resumed] * 3
    # An error names the process that it comes from, in the others.
    cut = (
        rf"{tmp_path}/no_whole/checkpoints/8/state: expected readable arrays, found .*; no other checkpoint is whole: "
    )
    cut += rf"remove {tmp_path}/no_whole/checkpoints"
    assert re.fullmatch(f"DamagedCheckpointError process 1: {cut}", first[2])
    assert re.fullmatch(f"DamagedCheckpointError {cut}", second[2])
    meta = f"{tmp_path}/unreadable/checkpoints/8/meta/metadata"
    assert first[4] == f"OSError process 1: {meta}: Input/output error"
    assert second[4] == f"OSError [Errno 5] Input/output error: '{meta}'"
    assert len(first) == len(second) == 5
    for name in ("no_whole", "unreadable"):  # nothing is removed
        assert {path.name for path in (tmp_path / name / "checkpoints").iterdir()} >= {"6", "8"}


FAILING = (
    BEGIN
    + """
def write(path):
    if sys.argv[4] == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if sys.argv[4] == "input":
        raise InputError("the judge did not answer")
    raise KeyError("a bug")

def evaluate(state):
    if int(state["step"].addressable_data(0)) == 4:
        processes.first(lambda: write(folder / "samples.jsonl"))
    return {}

small_run.start(address, index)
made = []
try:
    small_run.train(folder / "run", evaluate=evaluate, made=made)
except Exception as error:
    print(type(error).__name__, error, file=file)
print(made, checkpoint_files.saved_steps(folder / "run" / "checkpoints"), file=file)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first", "second", "saved"),
    [
        (
            "disk",
            "OSError [Errno 28] No space left on device: '{folder}/samples.jsonl'",
            "OSError process 0: {folder}/samples.jsonl: No space left on device",
            [2],
        ),
        (
            "input",
            "InputError the judge did not answer; step 4 is saved",
            "InputError process 0: the judge did not answer; step 4 is saved",
            [2, 4],
        ),
        ("bug", "KeyError 'a bug'", "RuntimeError process 0: KeyError: 'a bug'", [2]),
    ],
    ids=["a full disk", "input", "a bug"],
)
def test_if_the_first_process_fails_in_a_callback_both_do_the_same(tmp_path, kind, first, second, saved):
    done = f"[1, 2, 3, 4] {saved}"
    expected = [[line.format(folder=tmp_path), done] for line in (first, second)]
    assert run_code(tmp_path, FAILING, kind) == expected


STOPPED = (
    BEGIN
    + """
small_run.start(address, index)

# Processes take different numbers of items, and Orbax saves steps that are far from any number of items.
with interruption.apart():
    assert len(list(interruption.stoppable(range(40 - 37 * index), "prepare"))) == 40 - 37 * index
with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(1_000_000, small_run.begin(), meta={})
    checkpoints.wait()
    if index == 1 and sys.argv[4] == "answers":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    done = []
    try:
        for item in interruption.stoppable(range(300), "answers"):
            done.append(item)
            time.sleep(0.01 if sys.argv[4] == "prepare" else 0.2)
    except Interrupted as error:
        print(error, len(done) < 100, file=file)

# Only the first process works, while the others wait.
def work():
    list(map(lambda _: time.sleep(0.1), interruption.stoppable(range(600), "prepare")))

if sys.argv[4] == "prepare":
    if index == 1:
        threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    try:
        with interruption.apart():
            processes.first_then_others(work)
    except Interrupted as error:
        print(error, time.monotonic() - begun < 30, file=file)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["answers", "prepare"])
def test_sigterm_stops_both_outside_of_training(tmp_path, place):
    assert run_code(tmp_path, STOPPED, place) == [[f"{place}: stopped by SIGTERM True"]] * 2
