"""Only one run at a time uses a folder; tested with real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from instructjax.errors import WorkdirError
from instructjax.runs import lock

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from instructjax.runs import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_stops_and_names_the_first(tmp_path, holder):
    with pytest.raises(WorkdirError) as error, lock.hold(tmp_path / "run"):
        raise AssertionError("both hold it")
    expected = f"{tmp_path}/run: expected a folder without another run, found one of process {holder.pid}"
    assert str(error.value) == expected


def test_a_killed_run_releases_the_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.hold(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_runs_may_follow_each_other_or_use_other_folders(tmp_path):
    for _ in range(2):
        with lock.hold(tmp_path / "a"), lock.hold(tmp_path / "b"):
            pass


def test_a_file_instead_of_the_folder_is_reported(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(WorkdirError, match="expected a folder that can be written to, found: "):
        with lock.hold(tmp_path / "run"):
            pass


def test_errors_of_the_run_pass_through(tmp_path):
    started = time.monotonic()
    with pytest.raises(OSError, match="of the run"), lock.hold(tmp_path / "run"):
        raise OSError("of the run")
    with lock.hold(tmp_path / "run"):
        assert time.monotonic() - started < 60
