"""What checkpoints cost: training with a save and without, in turn, at the sandbox's size and intervals.

python experiments/save_cost.py

A save hinders training twice: the main thread takes digests and copies arrays, and other threads then write.
Both are in the difference between a stretch of steps that begins with a save, and waits for its end, and one
without; by the clock and in seconds of the processor, which other programs do not lengthen. Prints medians
over pairs of neighbours, the first save apart, as it compiles; and the share that all saves of a stage have
of its training. Weights and batches are made up.
"""

import statistics
import tempfile
import time

import command_line
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.planning import programs
from instructjax.runs.checkpoint import Checkpoints
from instructjax.training import parallel

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Pairs of stretches.")
STRETCHES = {  # the keys with the interval and with the number of steps, and the steps of a stretch
    "pretrain": (("log", "save_every"), ("pretrain", "steps"), 20),
    "ppo_ptx iteration": (("ppo_log", "save_every"), ("ppo", "iterations"), 1),
}
TOKENIZER = "x" * 18_000  # as long as the sandbox's, in base64


def arrays_like(tree):
    """Arrays of these shapes: small random numbers, which no file system makes shorter, and ones."""
    random = np.random.default_rng(0)

    def array(shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.ones(shape.shape, shape.dtype)
        return jnp.asarray(np.abs(0.02 * random.standard_normal(shape.shape)), shape.dtype)  # moments are not negative

    return jax.tree.map(array, tree)


def measure(name, config, folder):
    """Prints what the saves of a stage cost."""
    program = programs.build(name, config)
    (section, interval), (stage, total), steps = STRETCHES[name]
    interval, total = config[section][interval], config[stage][total]
    step = parallel.compile_step(program.function, config.parallel)
    state, batch, constants = (arrays_like(tree) for tree in (program.state, program.batch, program.constants))
    key, meta = jax.random.key(0), {"config": config.to_dict(), "tokenizer": TOKENIZER}
    saves = 0

    def stretch(saving):
        """Seconds of the clock, of the processor, and of the clock while the main thread was in `save`."""
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
    print(f"{name}: {size:.1f} MiB, {total} steps, saved each {interval}; in `save` {inside:.3f} s of the clock")
    for unit, what in enumerate(("clock", "processor")):
        plain = statistics.median(without[unit] for _, without in pairs)
        later = statistics.median(saved[unit] - without[unit] for saved, without in pairs)
        opening, training = first[unit] - plain, plain * total / steps
        spent = opening + (total // interval - 1) * later
        print(
            f"  seconds of the {what}: the first save {opening:.3f}, a later one {later:.3f}; "
            f"all of them {100 * spent / training:.2f} % of {training:.0f} s of training"
        )


def main(config, workdir):
    """Measures pretraining and PPO-ptx."""
    del workdir
    for name in STRETCHES:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, config, folder)


if __name__ == "__main__":
    command_line.read(main)
