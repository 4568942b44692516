"""Reward functions as people write them, in runs of 1, 2 and 8 devices and of two processes: none hangs or aborts."""

import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from instructjax.runs import metrics_file
from tests import cpus, local_data
from tests.experiments.test_two_processes import SMALL

ROOT = pathlib.Path(__file__).resolve().parents[2]
JUDGES = local_data.FAULTS / "rewards"
LAYOUTS = {  # processes, and devices of each
    "one_device": (1, 1),
    "two_devices": (1, 2),
    "eight_devices": (1, 8),
    "two_processes": (2, 2),
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not JUDGES.is_dir(), reason=local_data.ABSENT)]


def start(script, workdir, devices, *flags):
    keys = [f"--config.{key}={value}" for key, value in SMALL.items()]
    arguments = [f"experiments/{script}.py", "--config=configs/sandbox.py:smoke", f"--workdir={workdir}", *keys, *flags]
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=cpus.environment(devices, PYTHONPATH=f"{ROOT}:{JUDGES}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Returns a folder with the stages before PPO."""
    workdir = tmp_path_factory.mktemp("judges") / "run"
    for script, *flags in (["pretrain"], ["sft"], ["reward"], ["ppo", "--stages=ppo_init"]):
        process = start(script, workdir, 1, *flags)
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-2000:]
    return workdir


@pytest.fixture(params=LAYOUTS)
def judged(before, tmp_path, request):
    """Returns a function that runs PPO on one of the layouts: (folder, exit codes, what was printed)."""
    processes, devices = LAYOUTS[request.param]

    def run(judge, iterations, **keys):
        flags = [
            "--stages=ppo",
            f"--config.ppo.reward_function=judges:{judge}",
            f"--config.ppo.iterations={iterations}",
            "--config.ppo.reward_retry_seconds=0.1",
            *[f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items()],
        ]
        folder = tmp_path / "run"
        shutil.copytree(before, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        several = [[coordinator, f"--process_id={i}", f"--process_count={processes}"] for i in range(processes)]
        together = several if processes > 1 else [[]]
        running = [start("ppo", folder, devices, *flags, *more) for more in together]
        text = "".join(process.communicate(timeout=900)[1] for process in running)
        return folder, [process.returncode for process in running], text

    return run


def errors(text):
    return {line for line in text.splitlines() if line.startswith("error: ")}


def steps(folder):
    path = folder / "ppo" / "metrics.jsonl"
    return [line["step"] for line in metrics_file.read(path)] if path.exists() else []


@pytest.mark.parametrize(
    ("judge", "iterations"),
    [("words", 2), ("jax_judge_each", 2), ("fails_once", 9), ("sampled", 2), ("constant", 2), ("slow", 1)],
)
def test_a_judge_that_answers_trains_to_the_end(judged, judge, iterations):
    folder, codes, text = judged(judge, iterations)
    assert set(codes) == {0}, text[-20_000:]
    assert steps(folder)[-1] == iterations


@pytest.mark.parametrize(
    ("judge", "cause"),
    [
        ("fails_later", "ConnectionError: HTTP 503: overloaded"),
        ("one_later", "found 1: [1.0]"),
        ("none_later", "found None"),
        ("words_of_text", "Score: 7"),
    ],
)
def test_a_judge_that_fails_ends_the_run_in_one_line_that_names_it(judged, judge, cause):
    folder, codes, text = judged(judge, 12)
    assert set(codes) == {2}, (codes, text[-20_000:])
    (line,) = errors(text)
    assert f"judges.py:{judge}: " in line and cause in line and line.endswith("saved"), line
    assert "Traceback" not in text
    assert str(max(steps(folder), default=0)) in line or "no step is saved" in line, line


def test_a_judge_that_never_answers_is_ended_by_the_time_limit(judged):
    _, codes, text = judged("stuck", 2, ppo__reward_timeout_seconds=3)
    assert set(codes) == {2}, (codes, text[-20_000:])
    (line,) = errors(text)
    assert line.startswith("error: ppo, ") and "judges.py:stuck: " in line and "(reward_timeout_seconds)" in line, line
