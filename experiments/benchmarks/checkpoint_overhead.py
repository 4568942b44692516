"""Measures what checkpoints cost: training with and without a save, at the sandbox's size and intervals.

python experiments/benchmarks/checkpoint_overhead.py

A save slows training twice: the main thread computes digests and copies arrays, then other threads write. To include
both, the script compares a stretch of steps that begins with a save, and waits for its end, with a stretch without a
save. It prints medians over adjacent pairs, in wall-clock seconds and in CPU seconds, which do not depend on other
programs. The first save is reported separately, because it compiles. Then it prints the share of a stage's training
time that all of its saves take. Parameters and batches are random.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.planning import programs
from instructjax.runs.checkpoint import Checkpoints
from instructjax.training import parallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Pairs of stretches.")
STRETCHES = {  # the keys of the save interval and of the number of steps; steps per stretch
    "pretrain": (("log", "save_every"), ("pretrain", "steps"), 20),
    "ppo_ptx iteration": (("ppo_log", "save_every"), ("ppo", "iterations"), 1),
}
TOKENIZER = "x" * 18_000  # the length of the sandbox's, in base64


def arrays_like(tree):
    """Returns arrays of these shapes: small random floats, which file systems cannot compress, and ones if integer."""
    random = np.random.default_rng(0)

    def array(shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.ones(shape.shape, shape.dtype)
        return jnp.asarray(np.abs(0.02 * random.standard_normal(shape.shape)), shape.dtype)  # moments are not negative

    return jax.tree.map(array, tree)


def measure(name, config, folder):
    """Prints what the saves of one stage cost."""
    program = programs.build(name, config)
    (section, interval), (stage, total), steps = STRETCHES[name]
    interval, total = config[section][interval], config[stage][total]
    step = parallel.compile_step(program.function, config.parallel)
    state, batch, constants = (arrays_like(tree) for tree in (program.state, program.batch, program.constants))
    key, meta = jax.random.key(0), {"config": config.to_dict(), "tokenizer": TOKENIZER}
    saves = 0

    def stretch(saving):
        """Returns the wall-clock seconds, the CPU seconds, and the wall-clock seconds inside `save`."""
        nonlocal state, saves
        clock, processor = time.perf_counter(), time.process_time()
        if saving:
            saves += 1
            checkpoints.save(saves, state, meta=meta)
        inside = time.perf_counter() - clock
        for _ in range(steps):
            state, _ = step(state, batch, key, *constants)
        jax.block_until_ready(state)
        checkpoints.wait()
        return time.perf_counter() - clock, time.process_time() - processor, inside

    with Checkpoints(folder, keep=config[section].keep) as checkpoints:
        stretch(False)  # compiles
        first = stretch(True)  # compiles the digests
        pairs = [(stretch(True), stretch(False)) for _ in range(_ROUNDS.value)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    inside = statistics.median(saved[2] for saved, _ in pairs)
    print(f"{name}: {size:.1f} MiB, {total} steps, a save every {interval}; inside `save` {inside:.3f} s")
    for unit, what in enumerate(("wall-clock", "CPU")):
        plain = statistics.median(without[unit] for _, without in pairs)
        later = statistics.median(saved[unit] - without[unit] for saved, without in pairs)
        opening, training = first[unit] - plain, plain * total / steps
        spent = opening + (total // interval - 1) * later
        print(
            f"  {what} seconds: the first save {opening:.3f}, a later one {later:.3f}; "
            f"all of them {100 * spent / training:.2f} % of {training:.0f} s of training"
        )


def main(run):
    """Measures pretraining and PPO-ptx."""
    config = run.config
    for name in STRETCHES:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, config, folder)


if __name__ == "__main__":
    command_line.read(main)
