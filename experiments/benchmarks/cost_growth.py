"""Measures how time and memory of a PPO iteration and of a reward-model step grow when a size is doubled.

python experiments/benchmarks/cost_growth.py --data=docs/cost_growth.json --picture=docs/cost_growth.png

Memory is XLA's count of temporary buffers, without arguments. Time is a median over steps. An exponent is the log-log
slope between the two largest sizes: it is 1 if twice the size costs twice as much.
"""

import math
import pathlib
import platform
import statistics
import sys
import time

import jax
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from instructjax import files
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import ScalarModel
from instructjax.training import objectives, optimizer
from instructjax.training import state as train_state
from instructjax.training.step import train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks import workloads

_DATA = flags.DEFINE_string("data", None, "A JSON file to write.")
_PICTURE = flags.DEFINE_string("picture", None, "A PNG file to write.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Steps per size.", lower_bound=1)
_DOUBLINGS = flags.DEFINE_integer("doublings", 3, "How many times a size is doubled.", lower_bound=1)

SHAPE = dict(vocab_size=1024, num_layers=2, d_model=128, num_heads=4, d_head=32, d_ff=512, max_length=1024)
# The smallest value of each size. A minibatch is 4 episodes.
EPISODES = {"episodes": 16, "response tokens": 32, "vocabulary": 1024, "layers": 2}
ANSWERS = {"answers K": 2}


def iteration(config, sizes):
    """Returns (program, state, other arguments) of a PPO iteration."""
    shape = {**SHAPE, "vocab_size": sizes["vocabulary"], "num_layers": sizes["layers"]}
    rows, response = sizes["episodes"], sizes["response tokens"]
    return workloads.ppo_iteration(TransformerConfig(**shape), config, rows, 4, response)


def ranking(config, sizes):
    """Returns (program, state, other arguments) of a reward-model step on 4 prompts of 64 tokens."""
    shape = TransformerConfig(**SHAPE)
    model = ScalarModel(shape)
    adam = optimizer.adam(config.optimizer, lambda _: 1e-5, 0.0)
    params = model.init(jax.random.key(0), *[jax.numpy.ones((1, 1), jax.numpy.int32)] * 3)["params"]
    batch = workloads.ranking_batch(shape, 4, sizes["answers K"], 64)
    step = jax.jit(train_step(objectives.ranking_loss(model), adam), donate_argnums=0)
    return step, train_state.create(params, adam), (batch, jax.random.key(1))


def measure(program, state, constants, steps):
    """Returns {"seconds", "bytes"} of one step."""
    compiled = program.lower(state, *constants).compile()
    laps = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, *constants))
        laps.append(time.perf_counter() - began)
    return {"seconds": statistics.median(laps[1:]), "bytes": compiled.memory_analysis().temp_size_in_bytes}


def growth(config):
    """Returns, for each size, its values, their costs and the exponents."""
    found = {}
    for start, make in ((EPISODES, iteration), (ANSWERS, ranking)):
        for name, least in start.items():
            values = [least * 2**i for i in range(_DOUBLINGS.value + 1)]
            costs = []
            for value in values:
                own = config.copy_and_resolve_references().unlock()
                costs.append(measure(*make(own, {**start, name: value}), _REPEATS.value))
            exponents = {kind: math.log2(costs[-1][kind] / costs[-2][kind]) for kind in costs[0]}
            found[name] = {"values": values, "costs": costs, "exponents": exponents}
            print(
                f"{name:16}{values[0]:6} to {values[-1]:6}  "
                f"{costs[0]['seconds']:7.3f} to {costs[-1]['seconds']:7.3f} s, exponent {exponents['seconds']:5.2f}  "
                f"{costs[0]['bytes'] / 2**20:7.1f} to {costs[-1]['bytes'] / 2**20:7.1f} MiB, "
                f"exponent {exponents['bytes']:5.2f}"
            )
    return found


def picture(found):
    """Draws costs against sizes, both divided by their first value."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("seconds", "bytes"), strict=True):
        for name, of in found.items():
            ratios = [value / of["values"][0] for value in of["values"]]
            label = f"{name}: {of['exponents'][kind]:.2f}"
            axes.loglog(ratios, [cost[kind] / of["costs"][0][kind] for cost in of["costs"]], "o-", label=label)
        axes.loglog(ratios, ratios, color="0.7", linewidth=1, zorder=0)
        axes.set(title={"seconds": "time", "bytes": "temporary memory"}[kind])
        axes.set(xlabel="size / first size", ylabel="cost / first cost")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(base=2))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_locator(NullLocator())
        axes.legend(frameon=False, fontsize=7, title="exponent at the end", title_fontsize=7)
    return figure


def main(run):
    """Measures and prints; writes the files that the flags name."""
    config = run.config
    data, image = (files.parse(flag.value, f"--{flag.name}") if flag.value else None for flag in (_DATA, _PICTURE))
    found = growth(config)
    if data:
        machine = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
        files.write_json(data, {"machine": machine, "growth": found})
    if image:
        with image.open("wb") as file:
            picture(found).savefig(file, dpi=150)


if __name__ == "__main__":
    command_line.read(main)
