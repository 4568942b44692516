"""The parts of device.py: each yields measurements as dictionaries, as soon as it has them."""

import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_recipes
from instructjax import accelerators
from instructjax.models import attention
from instructjax.models.config import DECODING_DTYPES, REMATS
from instructjax.planning import chips, compiling, plan, programs
from instructjax.runs import provenance
from instructjax.training import parallel

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, STEP_SECONDS = 10, 20.0  # a program runs at most so often and, after its first step, about so long


@dataclasses.dataclass(frozen=True)
class Task:
    """What a part is asked to do.

    Attributes:
      rehearse: whether at tiny sizes.
      topology: the chips of this machine, such as "h100:1"; "" before they are known.
    """

    rehearse: bool
    topology: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
      seconds: its time limit.
      measure: yields its measurements.
      on_host: whether it leaves the accelerators alone.
    """

    seconds: float
    measure: Callable[[Task], Iterator[dict]]
    on_host: bool = False


def versions():
    """Returns the versions of the code and of JAX."""
    return {"instructjax": provenance.code_version(), "jax": jax.__version__}


def seconds_of(function, *arguments, times=5):
    """Returns the median seconds of a compiled function; its first call is not counted."""
    jax.block_until_ready(function(*arguments))
    laps = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


def machine(task):
    """Measures the rates that bound every program: of one chip, and of a reduction over all."""
    device, count = jax.devices()[0], jax.device_count()
    yield {"device": device.device_kind, "devices": count, "topology": topology_of(jax.devices())}
    width, repeats, numbers = (256, 2, 2**20) if task.rehearse else (8192, 16, 2**28)
    square = jnp.full((width, width), 1 / width, jnp.bfloat16)  # its own square

    @jax.jit
    def products(x):
        return jax.lax.fori_loop(0, repeats, lambda _, y: jnp.dot(y, square), x)

    yield {"matmul_flops": 2 * width**3 * repeats / seconds_of(products, square), "width": width}
    array = jnp.ones(numbers, jnp.float32)
    yield {"bandwidth": 2 * array.nbytes / seconds_of(jax.jit(lambda x: x + 1), array)}
    if count > 1:
        mesh = jax.make_mesh((count,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec()
        reduce = jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=spec, out_specs=spec)
        sent = jax.device_put(jnp.ones(numbers // 4), jax.sharding.NamedSharding(mesh, spec))
        # A ring sends each number almost twice.
        yield {"all_reduce_bandwidth": 2 * sent.nbytes * (count - 1) / count / seconds_of(jax.jit(reduce), sent)}


def topology_of(devices):
    """Returns the name of these chips for planning, such as "v5e:2x4", "h100:1" or "cpu:8"; "" if they are unknown."""
    chip = accelerators.of_device(devices[0])
    if chip is None:
        return f"cpu:{len(devices)}" if devices[0].platform == "cpu" else ""
    kind = next(kind for kind, known in accelerators.CHIPS.items() if known is chip)
    if chip.platform != "tpu":
        return f"{kind}:{len(devices)}"
    sides = np.max([device.coords for device in devices], axis=0) + 1
    return f"{kind}:{'x'.join(map(str, sides[: chip.rank]))}"


def attention_parity(task):
    """Compares attention as a run computes it with einsums in float32, on packed rows and on answers to one prompt."""
    heads, width, length = (2, 64, 256) if task.rehearse else (16, 128, 2048)
    shape = (4, heads, length, width)
    query, key, value, weights = (jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 4))
    columns = jnp.arange(length)[None]
    segments = jnp.broadcast_to(1 + (columns >= length // 3).astype(jnp.int32), shape[::2])  # two texts per row
    branches = (columns // (length // 8)) * (columns >= length // 4)  # a prompt and six answers
    packed = attention.attention_mask(columns, columns, segments, segments)
    whole = jnp.ones_like(segments)
    shared = attention.attention_mask(columns, columns, whole, whole) & attention.branch_mask(branches, branches)
    cases = {
        "packed rows": attention.Visible(packed, segments=segments),
        "answers to one prompt": attention.Visible(
            shared, segments=whole, branches=jnp.broadcast_to(branches, whole.shape)
        ),
    }
    for name, visible in cases.items():
        yield {"attention": name, **_parity(visible, query, key, value, weights)}


def _parity(visible, query, key, value, weights):
    """Returns the errors of bfloat16, as a run computes it and as einsums, divided by the largest float32 value."""

    def gradients(compute):
        def loss(*arrays):
            mixed = compute(*arrays)
            return jnp.sum(mixed.astype(jnp.float32) * weights), mixed

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    def einsums(*arrays):
        return attention._attend(*arrays, visible.dense, arrays[0].dtype, arrays[0].shape[-1] ** -0.5, 0.0)

    half = tuple(array.astype(jnp.bfloat16) for array in (query, key, value))
    fused, plain = (gradients(compute) for compute in (lambda *arrays: attention.attention(*arrays, visible), einsums))
    with jax.default_matmul_precision("highest"):
        exact = plain(*(array.astype(jnp.float32) for array in half))

    def error(found):
        return max(
            float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        )

    text = fused.lower(*half).compile().as_text()
    kernels = {"cudnn": "cuDNN", "splash": "splash"}
    return {
        "kernel": next((kernel for mark, kernel in kernels.items() if mark in text.lower()), "einsums"),
        "error": error(fused(*half)),
        "error_of_einsums": error(plain(*half)),
        "seconds": seconds_of(fused, *half),
        "seconds_of_einsums": seconds_of(plain, *half),
    }


def programs_of(size, names, task, **changes):
    """Measures programs of one size with one state, each with its memory, its FLOPs and its bytes.

    Keys of the recipe are changed by name, with two underscores instead of the dot.
    """
    config = device_recipes.recipe(size, rehearse=task.rehearse, **changes)
    built = [programs.build(name, config) for name in names]
    with parallel.on_mesh(config.parallel):
        state, constants = initial(built[0])
        for program in built:
            batch = place(device_recipes.batch(program.name, config))
            state, measured = run(program, config, (state, batch, jax.random.key(1), *constants))
            yield {
                "size": size,
                "program": program.name,
                "changes": changes,
                **measured,
                "units": device_recipes.units(program.name, config),
                "tensor": config.parallel.tensor,
                "phases": {name: dataclasses.asdict(work) for name, work in program.phases.items()},
            }


def initial(program):
    """Returns a state and constants with these shapes, on the mesh of the context: small random weights, zeros else."""

    def fill(tree):
        def leaf(path, shape):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if "opt_state" in name or not jnp.issubdtype(shape.dtype, jnp.floating):
                return jnp.zeros(shape.shape, shape.dtype)
            return 0.02 * jax.random.normal(jax.random.key(len(name)), shape.shape, shape.dtype)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    return parallel.build(lambda: fill(program.state)), parallel.build(lambda: fill(program.constants))


def place(batch):
    """Shards the rows of a batch over the mesh of the context, if there is one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(batch)
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))))


def run(program, config, arguments):
    """Compiles a program as its stage does and runs it: the new state, and times and memory."""
    start = time.perf_counter()
    sharded = config.parallel.shard_optimizer_state
    compiled = compiling.lower(program, arguments, shard_optimizer_state=sharded).compile()
    compile_seconds = time.perf_counter() - start
    state, *given = arguments
    del arguments  # a donated state must not be held
    laps, began = [], time.perf_counter()
    while len(laps) < 2 or (len(laps) <= STEPS and time.perf_counter() - began < STEP_SECONDS):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(state, *given))
        state = result[0] if program.donated else state
        laps.append(time.perf_counter() - start)
    stats = jax.local_devices()[0].memory_stats() or {}
    return state, {
        "compile_seconds": compile_seconds,
        "seconds": statistics.median(laps[1:]),
        "steps": len(laps) - 1,
        "peak_by_compiler": compiling.peak_bytes(compiled.memory_analysis(), jax.default_backend()),
        "peak_measured": stats.get("peak_bytes_in_use"),  # of this process so far
    }


def plans(task):
    """Predicts the memory of the same programs by experiments/plan.py's functions."""
    topology = chips.parse(task.topology)
    for size in device_recipes.SIZES:
        config = device_recipes.recipe(size, rehearse=task.rehearse)
        for name in device_recipes.PROGRAMS:
            found = plan.plan_program(name, config, topology)
            yield {
                "size": size,
                "program": name,
                "peak_planned": found.compiled.peak if found.compiled else None,
                "obstacle": found.obstacle,
            }


def layouts(task):
    """Runs the tests that all meshes give the same numbers, in full precision, on eight of these devices.

    This process must not start JAX's devices: the tests need them.
    """
    if not task.rehearse and chips.parse(task.topology).size != 8:
        raise SystemExit(f"error: expected 8 devices to compare layouts on, found {task.topology}")
    tests = "tests/training/test_mesh_layouts.py"
    chosen = ["-k", "pretrain and all and slots"] if task.rehearse else ["-m", "slow or not slow"]
    yield subprocess_of([sys.executable, "-m", "pytest", "-n", "0", "-q", tests, *chosen], "tests")


def smoke(task):
    """Runs the smoke recipe, from pretraining to the report."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "experiments/reproduce.py", "--config=configs/sandbox.py:smoke"]
        command += [f"--workdir={folder}", *(device_recipes.SHORT_SMOKE if task.rehearse else ())]
        found = subprocess_of(command, "recipe")
        results = json.loads((pathlib.Path(folder) / "results.json").read_text())
        yield found | {"win_rates": {name: row["win_rate_vs_sft"] for name, row in results["models"].items()}}


def subprocess_of(command, what):
    """Runs a command in the root of the repository and returns its seconds; ends with its last line if it fails."""
    start = time.perf_counter()
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if what == "tests" else None
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise SystemExit(f"error: exit code {done.returncode}: {last}")
    return {what: last, "seconds": time.perf_counter() - start}


EXTRAS = {  # parts that run only if they are named
    "plan": Part(1800, plans, on_host=True),  # took 1,349 s on two cores; uses no accelerator
    **{
        f"remat {choice}": Part(90, functools.partial(programs_of, "1.3B", ("sft",), model__remat=choice))
        for choice in REMATS
    },
    **{
        dtype: Part(90, functools.partial(programs_of, "1.3B", ("ppo rollout",), ppo__rollout_dtype=dtype))
        for dtype in DECODING_DTYPES
    },
}
PARTS = {
    "machine": Part(45, machine),
    "attention": Part(90, attention_parity),
    **{
        f"{size} {work}": Part(factor * limit, functools.partial(programs_of, size, names))
        for size, factor in (("124M", 1), ("1.3B", 1.5))
        for (work, names), limit in zip(device_recipes.WORK.items(), (60, 60, 100), strict=True)
    },
    "layouts": Part(90, layouts),
    "smoke": Part(120, smoke),
    **EXTRAS,
}
