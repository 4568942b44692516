"""Measures what the run-time invariants cost: PPO-ptx iterations with and without them, at the sandbox's size.

python experiments/benchmarks/invariants_overhead.py

"Without" is the same program with the invariants removed from its metrics, so that the compiler drops everything that
only they need: the sampler's log-probabilities and every comparison. The two programs take turns. The script prints
medians over adjacent pairs, in wall-clock seconds and in CPU seconds, which do not depend on other programs. Then it
prints the host's share: checking the metrics of each iteration, and digests of the frozen weights twice per stage.
"""

import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.algorithms import advantages
from instructjax.algorithms.ppo import Frozen, Learner, PPOState, make_iteration
from instructjax.batch import LMBatch, PromptBatch
from instructjax.models.config import TransformerConfig
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.runs import digest, invariants
from instructjax.stages import trained
from instructjax.training import metrics as metrics_lib
from instructjax.training import optimizer
from instructjax.training import state as train_state

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Pairs of iterations.")
VOCABULARY = 896  # the sandbox's
# Computed only for the invariants; "first_ratio_deviation" is the first of "max_ratio_deviation".
MEASURED = {*invariants.INVARIANTS, "max_ratio_deviation"}


def seconds(work):
    """Returns the (wall-clock, CPU) seconds of a call."""
    clock, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return time.perf_counter() - clock, time.process_time() - processor


def main(run):
    """Compiles both programs and runs them in turn."""
    config = run.config
    shape = TransformerConfig(vocab_size=VOCABULARY, **config.model.to_dict())
    policy, scalar = LanguageModel(shape), ScalarModel(shape)
    params, reward = (trained.initial_params(model, jax.random.key(i)) for i, model in enumerate((policy, scalar)))
    adam = optimizer.adam(config.optimizer, lambda _: 1e-6, 0.0)
    rows, width = config.ppo.batch_size, config.data.max_prompt
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, (rows, width)).astype(np.int32)
    prompts = PromptBatch(tokens, np.ones_like(tokens))
    windows = np.resize(tokens, (rows * config.ppo.ptx_examples_per_episode, config.ppo.ptx_length))
    ones, places = np.ones_like(windows), np.broadcast_to(np.arange(windows.shape[1], dtype=np.int32), windows.shape)
    text = LMBatch(windows, ones, places, ones.astype(np.float32))
    frozen = Frozen(reference=params, reward=reward)
    state = PPOState(
        jnp.zeros((), jnp.int32), train_state.create_averaged(params, adam), train_state.create(reward, adam)
    )
    parts = Learner(policy, adam), scalar, Learner(scalar, adam), advantages.gae(1.0, 0.95)
    iterate = make_iteration(*parts, config.ppo, max_response=config.data.max_response, eos_id=1, pad_id=0)

    def iterate_unwatched(*given):
        state, metrics = iterate(*given)
        return state, {name: metric for name, metric in metrics.items() if name not in MEASURED}

    given = state, (prompts, text), jax.random.key(0), frozen
    watched, unwatched = (jax.jit(f).lower(*given).compile() for f in (iterate, iterate_unwatched))
    _, metrics = watched(*given)
    unwatched(*given)
    pairs = [(seconds(lambda: watched(*given)), seconds(lambda: unwatched(*given))) for _ in range(_ROUNDS.value)]
    for unit, name in enumerate(("wall-clock", "CPU")):
        with_them, without = ([times[unit] for times in side] for side in zip(*pairs, strict=True))
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(with_them, without, strict=True)], n=4)
        print(
            f"PPO-ptx iteration, {rows} episodes, {name} seconds: {statistics.median(with_them):.3f} with "
            f"invariants, {statistics.median(without):.3f} without: {100 * (ratio - 1):+.2f} % "
            f"(quartiles {100 * (low - 1):+.2f} and {100 * (high - 1):+.2f} %)"
        )

    values = metrics_lib.compute([jax.device_get(metrics)])
    digest.digests(frozen)  # compiles
    for name, work in {
        "checking": lambda: invariants.violations(values, "float32"),
        "digests": lambda: digest.digests(frozen),
    }.items():
        print(f"{name}: {1000 * statistics.median(seconds(work)[0] for _ in range(_ROUNDS.value)):.3f} ms")


if __name__ == "__main__":
    command_line.read(main)
