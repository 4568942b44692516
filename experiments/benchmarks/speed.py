"""Measures training steps, generation and PPO iterations on random tokens, optionally in turn with TRL.

python experiments/benchmarks/speed.py --size=A
python experiments/benchmarks/speed.py --size=A --peer=trl --peer_scripts=FOLDER --peer_python=PYTHON

    sft         a step on full rows                                       tokens/s
    reward      a step on rankings of 4; the prompt is half of each text  rankings/s (6 comparisons each)
    generation  answers that never end early                              new tokens/s
    ppo         an iteration: rollout, scores of four networks, updates   episodes/s
    matmul      products of two 2048 x 2048 matrices in --matmul_dtype    Gflop/s

Each measurement runs in its own process, so that its peak memory is its own. The sides take turns, so that other load
on the machine slows both. The first two steps, which compile, are not counted. The script prints medians over rounds
and the load of the machine; --results writes them as JSON. Memory is reported for the first round, which compiles, and
for the last, which finds compiled programs in the cache, as a resumed run does. MFU is model FLOP/s divided by this
machine's measured matmul FLOP/s. Recomputed and masked operations are not counted.

On a GPU, memory is that of the device.

FOLDER holds the peer's scripts bench_{sft,rm,gen,ppo}.py. Each takes --size, --dtype, --warm, --steps and --budget
(seconds), and writes $PEER_OUT/results/NAME.json with the rate and "peak_rss_mb".
"""

import functools
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile

import jax
from absl import flags
from etils import epath

from instructjax import files
from instructjax.errors import ConfigError
from instructjax.runs import provenance
from instructjax.stages.adapter_base import lora_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks.workloads import SHAPES, UNITS, measure_here, model_flops

PEER = {
    "sft": ("bench_sft.py", "tokens_per_s"),
    "reward": ("bench_rm.py", "rankings_per_s"),
    "generation": ("bench_gen.py", "new_tokens_per_s"),
    "ppo": ("bench_ppo.py", "episodes_per_s"),
}
PEER_PACKAGES = ("torch", "transformers", "trl")
_SIZE = flags.DEFINE_enum(
    "size", "A", sorted(SHAPES), "A: 4 layers of width 256; B: GPT-2, 124M; S: SmolLM2, 135M; T: for tests."
)
_WORK = flags.DEFINE_list("work", list(UNITS), "The kinds of work to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 8, "Steps of each turn.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A JSON file to write; tables.py makes a table of it.")
_TITLE = flags.DEFINE_string("title", None, "The title of the table; by default the size and the sides.")
_MATMUL_DTYPE = flags.DEFINE_enum(
    "matmul_dtype", "float32", ["float32", "bfloat16"], "The dtype of our matmuls: model.matmul_dtype."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "The dtype of our activations: model.dtype.")
_PEER = flags.DEFINE_enum("peer", None, ["trl"], "The library to measure in turn.")
_PEER_SCRIPTS = flags.DEFINE_string("peer_scripts", None, "The folder of the peer's scripts.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", None, "The Python that has the peer's packages.")
_PEER_DTYPE = flags.DEFINE_enum("peer_dtype", "fp32", ["fp32", "bf16"], "The peer's dtype; bf16 is autocast.")
_PEER_ENVIRONMENT = flags.DEFINE_list("peer_environment", [], "KEY=VALUE for the environment of the peer's processes.")
_PEER_BUDGET = flags.DEFINE_integer("peer_budget", 30, "Seconds that the peer may wait for a quiet machine.")
_ALONE = flags.DEFINE_enum(
    "alone", None, [*UNITS, "matmul"], "Measures one kind of work in this process and prints it as JSON."
)


def measure_ours(folder, work):
    """Measures one kind of work in a new process, which keeps its compiled programs in `folder`."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--alone={work}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": os.path.join(folder, "compiled")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peer(folder, work):
    """Measures the same work with the peer's script, in the peer's environment."""
    script, rate = PEER[work]
    python, path = os.path.expanduser(_PEER_PYTHON.value), os.path.expanduser(_PEER_SCRIPTS.value)
    command = [
        *(python, os.path.join(path, script), f"--size={_SIZE.value}"),
        *(f"--dtype={_PEER_DTYPE.value}", "--warm=2", f"--steps={_STEPS.value}", f"--budget={_PEER_BUDGET.value}"),
    ]
    (epath.Path(folder) / "results").rmtree(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PEER_OUT": folder}
    environment |= dict(pair.split("=", 1) for pair in _PEER_ENVIRONMENT.value)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    (path,) = (epath.Path(folder) / "results").glob("*.json")
    found = json.loads(path.read_text())
    return {
        "rate": found[rate],
        "seconds": found["all_median_s"],
        "cpu_seconds": found["cpu_s_median"],
        "peak_mb": found["peak_rss_mb"],
    }


def _dtypes():
    return {"dtype": _DTYPE.value, "matmul_dtype": _MATMUL_DTYPE.value}


def main(run):
    """Measures the sides in turn and prints a table."""
    config = run.config
    if _ALONE.value:
        print(json.dumps(measure_here(_ALONE.value, config, _SIZE.value, _dtypes(), _STEPS.value)))
        return
    if unknown := set(_WORK.value) - set(UNITS):
        raise ConfigError(f"--work: expected kinds among {', '.join(UNITS)}, found {', '.join(sorted(unknown))}")
    if wrong := [pair for pair in _PEER_ENVIRONMENT.value if "=" not in pair]:
        raise ConfigError(f"--peer_environment: expected KEY=VALUE, found {wrong[0]!r}")
    if _PEER.value and not (_PEER_SCRIPTS.value and _PEER_PYTHON.value):
        raise ConfigError("--peer: expected --peer_scripts and --peer_python with it, found one or both missing")
    path = files.parse(_RESULTS.value, "--results") if _RESULTS.value else None
    if path and not (parent := path.parent).is_dir():
        raise ConfigError(f"--results: expected a file in an existing folder, found no {parent}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {"instructjax": functools.partial(measure_ours, folder)} | (
            {_PEER.value: functools.partial(measure_peer, folder)} if _PEER.value else {}
        )
        results = compare(sides, lora_config(config))
    if path:
        files.write_json(path, results)


def command():
    """Returns the command line, with the paths of this machine replaced by placeholders."""
    places = {"peer_scripts": "FOLDER", "peer_python": "PYTHON", "results": "FILE"}
    given = [flag for flag in flags.FLAGS.get_flags_for_module(__name__) if flag.present]
    shown = (f"--{flag.name}={places.get(flag.name) or flag.serialize().partition('=')[2]}" for flag in given)
    keys = (argument for argument in sys.argv[1:] if argument.startswith("--config"))
    return shlex.join(["python", "experiments/benchmarks/speed.py", *shown, *keys])


def peer_versions():
    """Returns the versions of the packages that the peer runs on."""
    if not _PEER.value:
        return {}
    installed = (
        "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found = subprocess.run([_PEER_PYTHON.value, "-c", installed], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: version for name, version in json.loads(found).items() if name in PEER_PACKAGES}


def compare(sides, adapters):
    """Measures each kind of work on each side in turn. Prints one line per side and returns all results.

    Args:
      sides: the function of each side that measures a kind of work.
      adapters: what learns on our side; None if all weights do.
    """
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    results = {
        "title": _TITLE.value or f"Size {_SIZE.value}, {' and '.join(sides)}",
        "size": _SIZE.value,
        "command": command(),
        "machine": f"{machine}, {jax.devices()[0].device_kind}",
        "versions": {"instructjax": provenance.code_version(), "jax": jax.__version__, **peer_versions()},
        "load": [os.getloadavg()[0]],
        "work": {},
    }
    print(f"size {_SIZE.value}, {results['machine']}, load {results['load'][0]:.1f}")
    for work in _WORK.value:
        rounds = [{side: measure(work) for side, measure in sides.items()} for _ in range(_ROUNDS.value)]
        matmul = sides["instructjax"]("matmul")["rate"] * 1e9
        medians = {
            side: {name: statistics.median(turn[side][name] for turn in rounds) for name in rounds[0][side]}
            | {"peak_mb": rounds[0][side]["peak_mb"], "peak_again_mb": rounds[-1][side]["peak_mb"]}
            for side in sides
        }
        mfu = model_flops(work, _SIZE.value, adapters) / (medians["instructjax"]["seconds"] * matmul)
        results["work"][work] = {"rounds": rounds, "medians": medians, "mfu": mfu, "matmul_flops": matmul}
        results["load"].append(os.getloadavg()[0])
        for side, found in medians.items():
            print(
                f"{work:10}  {side:11}  {found['rate']:10.2f} {UNITS[work]}/s  {found['seconds']:8.3f} s per step  "
                f"{found['cpu_seconds']:8.3f} s of CPU  {found['peak_mb']:6.0f} MB, "
                f"{found['peak_again_mb']:.0f} again"
            )
        print(f"{work:10}  MFU {mfu:.2f}, of {matmul / 1e9:.0f} Gflop/s")
        if _PEER.value:
            one, other = medians["instructjax"], medians[_PEER.value]
            memory = (one[peak] / other[peak] for peak in ("peak_mb", "peak_again_mb"))
            print(f"{work:10}  ratio {one['rate'] / other['rate']:.2f}, memory {', '.join(f'{m:.2f}' for m in memory)}")
    print(f"load at the end {results['load'][-1]:.1f}")
    return results


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process and those of the sides share a GPU
    command_line.read(main)
