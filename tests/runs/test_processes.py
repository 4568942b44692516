"""Compares two processes with four devices each, over loopback, with one process; also kills one of them."""

import importlib.util
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from instructjax.errors import InputError
from instructjax.runs import checkpoint, checkpoint_files, metrics_file, processes, speed
from tests import cpus
from tests.runs import worker

ENVIRONMENT = cpus.environment(4)
PATH = pathlib.Path(worker.__file__)
ROOT = PATH.parents[2]


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(directory, steps, *, fsdp=1, tensor=1, order="hosts"):
    """Starts two processes that train together."""
    coordinator = free_address()
    arguments = [str(directory), str(steps), str(fsdp), str(tensor), order]
    return [
        subprocess.Popen(
            [sys.executable, str(PATH), coordinator, str(index), "2", *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def together(*given, **keys):
    """Returns the output of the two, after both have succeeded."""
    running = start(*given, **keys)
    printed = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)
    return printed


def ended(directory):
    """Returns (weights, curves) of a run."""
    template = jax.eval_shape(lambda: worker.fakes.params(worker.LanguageModel(worker.fakes.BANDED)))
    curves = [
        {name: value for name, value in line.items() if name not in speed.MEASURED}
        for line in metrics_file.read(directory / "metrics.jsonl")
    ]
    return checkpoint.restore_params(directory / "checkpoints", template), curves


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs eight steps in one process on one device."""
    directory = epath.Path(tmp_path_factory.mktemp("alone"))
    config = worker.config_of(1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        worker.train(directory, 8, config)
    return ended(directory)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[0], expected[0])
    assert [line["step"] for line in found[1]] == [line["step"] for line in expected[1]]
    for here, there in zip(found[1], expected[1], strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_same_results_as_one(tmp_path, alone):
    printed = together(tmp_path, 8)
    assert [re.search("process . of 2, 8 devices", text)[0] for text in printed] == [
        "process 0 of 2, 8 devices",
        "process 1 of 2, 8 devices",
    ]
    assert_same(ended(tmp_path), alone)


@pytest.mark.slow
def test_rows_of_a_process_need_not_be_adjacent(tmp_path, alone):
    together(tmp_path, 8, fsdp=2, order="torus")
    assert_same(ended(tmp_path), alone)


@pytest.mark.slow
def test_a_run_resumes_with_other_processes_on_another_mesh(tmp_path, alone):
    """Four steps by two processes, two by one on eight devices, two by two again: the same batches in one order."""
    together(tmp_path, 4, fsdp=4)
    worker.train(epath.Path(tmp_path), 6, worker.config_of(2, 2))
    together(tmp_path, 8, fsdp=2, tensor=2)
    assert_same(ended(tmp_path), alone)


def wait_for_a_checkpoint(directory):
    deadline = time.monotonic() + 120
    while not checkpoint_files.saved_steps(directory / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert checkpoint_files.saved_steps(directory / "checkpoints"), "nothing was saved"


def end(running):
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(tmp_path):
    running = start(tmp_path, 100_000)
    try:
        wait_for_a_checkpoint(tmp_path)
        running[1].send_signal(signal.SIGKILL)
        printed, _ = running[0].communicate(timeout=180)
        # Gloo or JAX's coordination service ends it, whichever notices first, each with messages of its own.
        assert running[0].returncode not in (0, -signal.SIGKILL), printed
    finally:
        end(running)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path):
    running = start(tmp_path, 100_000)
    try:
        wait_for_a_checkpoint(tmp_path)
        running[1].send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=180)[0] for process in running]
    finally:
        end(running)
    steps = [re.search(r"Interrupted: \S+: stopped by SIGTERM after step (\d+) of 100000", text) for text in printed]
    assert all(steps), printed
    (step,) = {int(step[1]) for step in steps}
    assert step < 10_000  # long before the first line of metrics
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints")[-1] == step


def test_processes_that_start_with_different_facts_are_named(monkeypatch):
    facts = {"sft.epochs": 2, "jax": "0.10.0"}
    texts = [json.dumps(facts), json.dumps(facts | {"sft.epochs": 3}), json.dumps({"sft.epochs": 2, "x": 0})]
    monkeypatch.setattr(processes, "gather", lambda text: texts)
    with pytest.raises(InputError) as error:
        processes.check_equal(facts)
    assert str(error.value).split("; ") == [
        "process 1: sft.epochs: expected 2, as in process 0, found 3",
        "process 2: jax: expected '0.10.0', as in process 0, found None",
        "process 2: x: expected None, as in process 0, found 0",
    ]


def test_many_differences_are_counted(monkeypatch):
    one, other = ({f"key{i}": value for i in range(9)} for value in (0, 1))
    monkeypatch.setattr(processes, "gather", lambda text: [text, json.dumps(other)])
    with pytest.raises(InputError, match="; and 4 more$"):
        processes.check_equal(one)


def end_code(folder, code, *arguments):
    """Returns (exit code, lines, error) of each of two processes; the lines are those that it writes to its file.

    The processes run the code with an address, their number, a file and `arguments`. What they print is of no use:
    Gloo's threads write to the same output, in the middle of a line too.
    """
    address, files = free_address(), [folder / f"process{index}.txt" for index in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index), str(file), *map(str, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, file in enumerate(files)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        end(running)
    written = [file.read_text().splitlines() if file.exists() else [] for file in files]
    return [(process.returncode, *rest) for process, *rest in zip(running, written, errors, strict=True)]


def run_code(folder, code, *arguments):
    """Returns the lines of the two processes of `end_code`, after both have succeeded."""
    codes, lines, errors = zip(*end_code(folder, code, *arguments), strict=True)
    assert codes == (0, 0), "\n".join(error[-2000:] for error in errors)
    return list(lines)


EXCHANGE = """
import sys, time
import jax
from instructjax.runs import processes
jax.config.update("jax_cpu_collectives_implementation", None)
address, index, file = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "w")
processes.start(address, index, 2)
for number in range(3):
    time.sleep(0.5 * index)
    text = "" if number == 1 else chr(0x1F98A) * index * 1000 + str(number)
    lengths = [len(found) for found in processes.gather(text)]
    print(len(processes.gather(text)), lengths, processes.agreed(index * 7), file=file)
def work():
    time.sleep(1)
    print("work", file=file)
processes.first(work)
"""


@pytest.mark.slow
def test_processes_exchange_texts_without_a_collective_of_their_devices(tmp_path):
    expected = ["2 [1, 1001] 7", "2 [0, 0] 7", "2 [1, 1001] 7"]
    assert run_code(tmp_path, EXCHANGE) == [[*expected, "work"], expected]


LATE = """
import sys, time
import jax, ml_collections
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from instructjax.runs import processes
from instructjax.training import parallel
address, index, file, fsdp, tensor = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "w"), *map(int, sys.argv[4:])
processes.start(address, index, 2)
config = ml_collections.ConfigDict({"mode": "jit", "data": -1, "fsdp": fsdp, "tensor": tensor})
with parallel.on_mesh(config):
    processes.connect_devices()
    time.sleep(40 * index)
    mesh = jax.sharding.get_mesh()
    for axes in ("data", ("data", "fsdp"), mesh.axis_names):
        size = lambda: jax.shard_map(lambda x: jax.lax.psum(x, axes), in_specs=P(mesh.axis_names), out_specs=P(
            tuple(name for name in mesh.axis_names if name not in axes)))(jnp.ones(mesh.size)).sum()
        print("size", float(jax.jit(size)()), file=file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (2, 2)])
def test_a_process_may_come_late_to_the_first_collective_of_a_program(tmp_path, fsdp, tensor):
    assert run_code(tmp_path, LATE, fsdp, tensor) == [["size 8.0"] * 3] * 2


def test_one_process_agrees_with_itself(tmp_path):
    assert processes.gather("text") == ["text"] == [processes.from_first(lambda: "text")]
    processes.check_equal({"sft.epochs": 2})
    processes.check_same_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def reproduce(coordinator, index, workdir, *flags):
    """Starts one of two processes of the smoke recipe."""
    several = [f"--coordinator={coordinator}", f"--process_id={index}", "--process_count=2"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "reproduce.py"), "--config=configs/sandbox.py:smoke"]
        + [f"--workdir={workdir}", *several, *flags],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def both_fail(coordinator, workdirs, flags):
    """Returns the error of the two, which must be the same."""
    running = [reproduce(coordinator, index, workdirs[index], *flags[index]) for index in range(2)]
    try:
        errors = [process.communicate(timeout=180)[1] for process in running]
    finally:
        end(running)
    assert [process.returncode for process in running] == [2, 2], errors
    (error,) = {next(line for line in text.splitlines() if line.startswith("error: ")) for text in errors}
    return error


@pytest.mark.slow
def test_processes_with_different_recipes_end_before_they_write(tmp_path):
    error = both_fail(free_address(), [tmp_path / "run"] * 2, [[], ["--config.sft.learning_rate=0.5"]])
    assert error == "error: process 1: sft.learning_rate: expected 0.001, as in process 0, found 0.5"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_different_folders_end(tmp_path):
    error = both_fail(free_address(), [tmp_path / "a", tmp_path / "b"], [[], []])
    assert re.fullmatch(
        r"error: --workdir: expected a folder that all processes share, "
        rf"found another one in process 1 \(\S+:{tmp_path}/b\)",
        error,
    )
    assert not (tmp_path / "a" / "data").exists() and not (tmp_path / "b").exists()


def test_a_process_whose_others_do_not_come_ends_with_a_line():
    program = (
        "import sys; from instructjax.runs import processes; "
        "processes.WAITING_SECONDS, processes.START_SECONDS = 0.5, 2; processes.start(sys.argv[1], 0, 2)"
    )
    address = free_address()
    found = subprocess.run(
        [sys.executable, "-c", program, address], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        f"waiting for 2 processes to connect to {address}, for 2 s at most",
        f"error: expected 2 processes to connect to {address} within 2 s, found none or too few",
    ]


def test_a_tpu_host_without_a_description_of_others_runs_alone(asked, tmp_path, monkeypatch, capsys):
    (tmp_path / "accel0").touch()

    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes.start(None, None, None)
    assert capsys.readouterr().err == "found chips, but no description of other hosts: this process runs alone\n"


@pytest.mark.parametrize("given", [("localhost:1", None, None), (None, 0, 2), ("localhost:1", 0, None)])
def test_some_of_the_flags_are_not_enough(given):
    with pytest.raises(InputError, match="^--.*: expected with the other flags of several processes, found none$"):
        processes.start(*given)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Imitates a machine without chips or schedulers, and records the arguments that JAX gets."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    monkeypatch.setattr(processes, "DEVICES", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
    for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_single_machine_does_not_look_for_others(asked):
    processes.start(None, None, None)
    assert asked == []


@pytest.mark.parametrize(
    "environment", [{"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, {"OMPI_COMM_WORLD_SIZE": "2"}]
)
def test_other_processes_are_found_through_schedulers(asked, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start(None, None, None)
    assert asked == [(None, None, None)]


def test_a_host_with_tpus_looks_for_others_unless_the_count_is_one(asked, tmp_path):
    (tmp_path / "accel0").touch()
    processes.start(None, None, 1)
    assert asked == []
    processes.start(None, None, None)
    assert asked == [(None, None, None)]


def test_a_slurm_allocation_alone_is_not_a_run_of_several_processes(asked, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # sbatch or salloc, without srun
    processes.start(None, None, None)
    assert asked == []
