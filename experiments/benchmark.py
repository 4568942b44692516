"""How fast the four kinds of work are, on random tokens, beside TRL on the same machine if asked.

python experiments/benchmark.py --size=A
python experiments/benchmark.py --size=A --peer=trl --peer_scripts=FOLDER --peer_python=PYTHON

    sft         a step on full rows                                     tokens/s
    reward      a step on rankings of 4, half of each text the prompt   rankings/s (6 comparisons each)
    generation  answers that never end early                            new tokens/s
    ppo         an iteration: rollout, four networks' scores, updates   episodes/s
    products    products of square matrices of 2048, of --factors       Gflop/s

Every measurement is a process of its own, so that its peak memory is its own, and the sides take turns, so that what
else the machine does meets both. The first steps, which compile, do not count. Prints medians over rounds, with the
load of the machine, and writes them as JSON where --results says. Memory is that of the first round, in which programs
are compiled, and of the last, which finds them, as a run that is started again does. "of products" is the share of the
rate of matrix products that the operations of the model come to, without those that are made again or hidden by masks.

FOLDER holds the peer's scripts bench_{sft,rm,gen,ppo}.py. Each takes --size, --dtype, --warm, --steps and --budget
(seconds), and writes $PEER_OUT/results/NAME.json with the rate and "peak_rss_mb".
"""

import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile

import command_line
import jax
from absl import flags
from benchmark_work import SHAPES, UNITS, alone, model_flops
from etils import epath

from instructjax.errors import ConfigError
from instructjax.runs import provenance

PEER = {
    "sft": ("bench_sft.py", "tokens_per_s"),
    "reward": ("bench_rm.py", "rankings_per_s"),
    "generation": ("bench_gen.py", "new_tokens_per_s"),
    "ppo": ("bench_ppo.py", "episodes_per_s"),
}
PEER_PACKAGES = ("torch", "transformers", "trl")
_SIZE = flags.DEFINE_enum("size", "A", sorted(SHAPES), "A: 4 layers of width 256; B: GPT-2, 124M; T: a test.")
_WORK = flags.DEFINE_list("work", list(UNITS), "Which kinds.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 8, "Steps of each turn.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A JSON file to write; benchmark_page.py makes a table of it.")
_TITLE = flags.DEFINE_string("title", None, "What to call the table; the sides and the size if not given.")
_FACTORS = flags.DEFINE_enum(
    "factors", "float32", ["float32", "bfloat16"], "What our matrix products are made of; model.matmul_dtype."
)
_PEER = flags.DEFINE_enum("peer", None, ["trl"], "Whom to measure in turn.")
_PEER_SCRIPTS = flags.DEFINE_string("peer_scripts", None, "The folder of the peer's scripts.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", None, "The Python that has the peer's packages.")
_PEER_DTYPE = flags.DEFINE_enum("peer_dtype", "fp32", ["fp32", "bf16"], "The peer's arithmetic.")
_PEER_ENVIRONMENT = flags.DEFINE_list("peer_environment", [], "KEY=VALUE of the peer's processes, such as threads.")
_PEER_BUDGET = flags.DEFINE_integer("peer_budget", 30, "Seconds that the peer may wait for a quiet machine.")
_ALONE = flags.DEFINE_enum(
    "alone", None, [*UNITS, "products"], "Measures one kind in this process and prints it as JSON."
)


def ours(folder, work):
    """`alone` in a process of its own; compiled programs are kept in the folder, as those of a run are in its own."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--alone={work}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": os.path.join(folder, "compiled")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def peer(folder, work):
    """The same work by the peer's script, in its own environment; it leaves what it prepares in the folder."""
    script, rate = PEER[work]
    command = [
        *(_PEER_PYTHON.value, str(epath.Path(_PEER_SCRIPTS.value) / script), f"--size={_SIZE.value}"),
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


def main(config, workdir):
    """Takes turns, and prints a table."""
    del workdir
    if _ALONE.value:
        print(json.dumps(alone(_ALONE.value, config, _SIZE.value, _FACTORS.value, _STEPS.value)))
        return
    if unknown := set(_WORK.value) - set(UNITS):
        raise ConfigError(f"--work: expected kinds among {', '.join(UNITS)}, found {', '.join(sorted(unknown))}")
    if wrong := [pair for pair in _PEER_ENVIRONMENT.value if "=" not in pair]:
        raise ConfigError(f"--peer_environment: expected KEY=VALUE, found {wrong[0]!r}")
    if _PEER.value and not (_PEER_SCRIPTS.value and _PEER_PYTHON.value):
        raise ConfigError("--peer: expected --peer_scripts and --peer_python with it, found one or both missing")
    if _RESULTS.value and not (parent := epath.Path(_RESULTS.value).parent).is_dir():
        raise ConfigError(f"--results: expected a file in a folder that is there, found no {parent}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {"instructjax": functools.partial(ours, folder)} | (
            {_PEER.value: functools.partial(peer, folder)} if _PEER.value else {}
        )
        results = compare(sides)
    if _RESULTS.value:
        epath.Path(_RESULTS.value).write_text(json.dumps(results, indent=2) + "\n")


def command():
    """The command line, without the places that files have on this machine."""
    places = {"peer_scripts": "FOLDER", "peer_python": "PYTHON", "results": "FILE"}
    given = [flag for flag in flags.FLAGS.get_flags_for_module(__name__) if flag.present]
    shown = (f"--{flag.name}={places.get(flag.name) or flag.serialize().partition('=')[2]}" for flag in given)
    return shlex.join(["python", "experiments/benchmark.py", *shown])


def peer_versions():
    """Of the packages that the peer runs on."""
    if not _PEER.value:
        return {}
    installed = (
        "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found = subprocess.run([_PEER_PYTHON.value, "-c", installed], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: version for name, version in json.loads(found).items() if name in PEER_PACKAGES}


def compare(sides):
    """Has the sides measure each kind in turn; prints a line for each and returns everything."""
    results = {
        "title": _TITLE.value or f"Size {_SIZE.value}, {' and '.join(sides)}",
        "size": _SIZE.value,
        "command": command(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "versions": {"instructjax": provenance.code_version(), "jax": jax.__version__, **peer_versions()},
        "load": [os.getloadavg()[0]],
        "work": {},
    }
    print(f"size {_SIZE.value}, {results['machine']}, load {results['load'][0]:.1f}")
    for work in _WORK.value:
        rounds = [{side: measure(work) for side, measure in sides.items()} for _ in range(_ROUNDS.value)]
        best = sides["instructjax"]("products")["rate"] * 1e9
        medians = {
            side: {name: statistics.median(turn[side][name] for turn in rounds) for name in rounds[0][side]}
            | {"peak_mb": rounds[0][side]["peak_mb"], "peak_again_mb": rounds[-1][side]["peak_mb"]}
            for side in sides
        }
        share = model_flops(work, _SIZE.value)
        share /= medians["instructjax"]["seconds"] * best
        results["work"][work] = {"rounds": rounds, "medians": medians, "of_products": share, "products": best}
        results["load"].append(os.getloadavg()[0])
        for side, found in medians.items():
            print(
                f"{work:10}  {side:11}  {found['rate']:10.2f} {UNITS[work]}/s  {found['seconds']:8.3f} s a step  "
                f"{found['cpu_seconds']:8.3f} s of processors  {found['peak_mb']:6.0f} MB, "
                f"{found['peak_again_mb']:.0f} again"
            )
        print(f"{work:10}  {share:.2f} of products, which are {best / 1e9:.0f} Gflop/s")
        if _PEER.value:
            one, other = medians["instructjax"], medians[_PEER.value]
            memory = (one[peak] / other[peak] for peak in ("peak_mb", "peak_again_mb"))
            print(f"{work:10}  ratio {one['rate'] / other['rate']:.2f}, memory {', '.join(f'{m:.2f}' for m in memory)}")
    print(f"load at the end {results['load'][-1]:.1f}")
    return results


if __name__ == "__main__":
    command_line.read(main)
