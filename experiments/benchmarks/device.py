"""Measures the programs of the recipe on the accelerators of this machine, in eight minutes.

python experiments/benchmarks/device.py --folder=FOLDER
python experiments/benchmarks/device.py --folder=FOLDER --rehearse --seconds=1200    tiny sizes, on a CPU

    machine     matmul FLOP/s, memory bandwidth and all-reduce, as measured
    attention   the fused kernels against einsums in float32: errors and times
    124M, 1.3B  SFT, the reward model, PPO's rollout and its iteration, in bfloat16, on random tokens
    layouts     tests/training/test_mesh_layouts.py on the chips instead of virtual devices; needs eight and pytest
    smoke       experiments/reproduce.py --config=configs/sandbox.py:smoke

And, if --parts names them,

    plan             what experiments/plan.py predicts for these programs; needs --seconds=1800, but no accelerator
    remat CHOICE     SFT of 1.3B with model.remat=CHOICE: none, dense, offload, attention or all
    int8, int8xint8  the rollout of 1.3B with this type

Each part runs in its own process and has a time limit, four times as long in a rehearsal. A part that fails or takes
too long keeps its measurements so far and records the reason. The others run all the same. FOLDER/device.json has all
measurements and FOLDER/device.md the tables. Both are written again after each part. A folder may be filled in several
calls with --parts, each of which replaces the parts that it names; code and JAX must be the same in all.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks import device_page, device_parts

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FOLDER = flags.DEFINE_string("folder", None, "The folder to write device.json and device.md to.")
_PARTS = flags.DEFINE_list(
    "parts", [name for name in device_parts.PARTS if name not in device_parts.EXTRAS], "The parts to run."
)
_SECONDS = flags.DEFINE_integer("seconds", 480, "Time for all parts together.", lower_bound=1)
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Tiny sizes, on a CPU.")
_ONLY = flags.DEFINE_enum("only", None, list(device_parts.PARTS), "Runs one part in this process.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "The chips to plan for; by default those that the part `machine` has found."
)
_MEASUREMENTS = flags.DEFINE_string("measurements", None, "The JSON Lines file that one part adds to.")
STARTS_IN = 5  # seconds; with less time left, a part is not started


def run_alone():
    """Runs one part in this process and appends each measurement to a file as soon as it is there."""
    command_line.set_compiler_flags()
    part = device_parts.PARTS[_ONLY.value]
    with open(_MEASUREMENTS.value, "a") as output:
        for measurement in part.measure(device_parts.Task(_REHEARSE.value, _TOPOLOGY.value)):
            print(json.dumps(measurement), file=output, flush=True)


def environment(name, folder, rehearse):
    """Returns the environment of a part's process."""
    found = dict(os.environ)
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [found.get("PYTHONPATH")])])
    if device_parts.PARTS[name].on_host or rehearse:
        found |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    else:
        found.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # nothing else uses the card
        found.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    return found


def run_part(name, topology, seconds, folder, *, rehearse):
    """Runs one part in a new process: {"seconds", "measurements"} and, if it did not end well, "error"."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as output:
        command = [
            sys.executable,
            __file__,
            f"--only={name}",
            f"--measurements={output.name}",
            f"--topology={topology}",
        ]
        command += ["--rehearse"] if rehearse else []
        start, error = time.monotonic(), ""
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment(name, folder, rehearse),
        )
        try:
            printed, _ = process.communicate(timeout=seconds)
            if process.returncode:
                error = reason(printed) or f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started: they hold the devices
            process.communicate()
            error = f"stopped after {seconds:.0f} s"
        found = {"seconds": time.monotonic() - start, "measurements": [json.loads(line) for line in output]}
    return found | ({"error": error} if error else {})


def reason(printed):
    """Returns the last line of what a failed process has printed that names an error, or its last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [line for line in lines if "rror" in line]
    return (named or lines or [""])[-1][:500]


def earlier(folder):
    """Returns the results that are in the folder, or those of no part.

    Raises:
      UsageError: they are of other code, another JAX or a rehearsal.
    """
    of_this = {
        "rehearsal": _REHEARSE.value,
        "command": f"python experiments/benchmarks/device.py --folder=FOLDER{' --rehearse' if _REHEARSE.value else ''}",
        "versions": device_parts.versions(),
    }
    if not (path := folder / "device.json").exists():
        return of_this | {"parts": {}}
    results = json.loads(path.read_text())
    for key, value in of_this.items():
        if results[key] != value:
            raise app.UsageError(f"{path}: expected {key} {value} as now, found {results[key]}; take another --folder")
    return results


def measure(folder):
    """Runs the parts one after the other. Returns all results, which are also in the folder."""
    began = time.monotonic()
    results = earlier(folder)
    rehearse = results["rehearsal"]
    for name in _PARTS.value:
        topology = _TOPOLOGY.value or device_page.facts(results).get("topology", "")
        left = _SECONDS.value - (time.monotonic() - began)
        if left < STARTS_IN:
            found = {"seconds": 0.0, "measurements": [], "error": f"no time left of {_SECONDS.value} s"}
        else:
            limit = device_parts.PARTS[name].seconds * (4 if rehearse else 1)
            found = run_part(name, topology, min(left, limit), folder, rehearse=rehearse)
        results["parts"][name] = found
        (folder / "device.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / "device.md").write_text(device_page.page(results))
        print(f"{name:12} {found['seconds']:6.1f} s  {found.get('error', 'done')}", flush=True)
    return results


def main(_):
    """Measures, and prints the page."""
    if _ONLY.value:
        return run_alone()
    if unknown := set(_PARTS.value) - set(device_parts.PARTS):
        names = ", ".join(device_parts.PARTS)
        raise app.UsageError(f"--parts: expected some of {names}, found {', '.join(sorted(unknown))}")
    if _FOLDER.value is None:
        raise app.UsageError("--folder: expected a folder, found none")
    folder = pathlib.Path(_FOLDER.value).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    print("\n" + device_page.page(measure(folder)))


if __name__ == "__main__":
    app.run(main)
