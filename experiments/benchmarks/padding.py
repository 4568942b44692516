"""Counts the columns and operations that a PPO iteration spends on padding, and how many packing leaves.

python experiments/benchmarks/padding.py --config=configs/instructgpt.py:1p3b

Lengths are drawn from the quartiles of the paper's prompts (Table 9) and of its customers' responses (Table 11), with
logarithms interpolated between them. Longer prompts than data.max_prompt are left out, and longer responses than
data.max_response are cut. Operations are those of the matmuls of the recipe's programs, traced and not run; a part that
is skipped has none. With --timed, iterations of a network run here, too.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks import workloads
from instructjax.models import sizes
from instructjax.models.config import TransformerConfig
from instructjax.planning import plan, programs
from instructjax.reporting.paper_tables import LENGTHS, LENGTHS_BY_WRITER
from instructjax.rollout import packing, sampling

_MICROBATCHES = flags.DEFINE_integer("microbatches", 16, "Parts of a minibatch with packing.", lower_bound=2)
_PARTS = flags.DEFINE_integer("rollout_parts", 4, "Parts of a rollout.", lower_bound=1)
_WIDTHS = flags.DEFINE_integer("rollout_widths", 4, "Widths of prompts.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Timed:
    """A network and the episodes of its iterations.

    Attributes:
      shape: of all four networks.
      rows: episodes, half of them in each minibatch.
      length: the most tokens of a prompt, and of a response.
      response: tokens of a response on average, those of `lengths` with this limit.
    """

    shape: TransformerConfig
    rows: int
    length: int
    response: int

    @property
    def ends(self) -> tuple[int, ...]:
        """Returns the end tokens: so many that a random policy ends a response at the average length."""
        return tuple(range(1, 1 + self.shape.vocab_size // self.response))


TIMED = {
    "tiny": Timed(
        TransformerConfig(vocab_size=1024, num_layers=2, d_model=128, num_heads=4, d_head=32, d_ff=512, max_length=512),
        rows=32,
        length=256,
        response=40,
    ),
    "124M": Timed(sizes.gpt3_config("small", max_length=1024, dtype="bfloat16"), rows=128, length=512, response=113),
}
_TIMED = flags.DEFINE_enum("timed", None, list(TIMED), "Also time iterations of this network.")

BATCHES = 5
LAPS = 5


def lengths(statistics, count, rng):
    """Draws lengths from the quartiles of a row of Table 9 or 11: count, mean, deviation, least, quartiles, most."""
    quartiles = np.log(np.maximum(statistics[3:], 1))
    return np.exp(np.interp(rng.uniform(size=count), np.linspace(0, 1, len(quartiles)), quartiles)).round().astype(int)


def draw(count, most_prompt, most_response, seed):
    """Draws lengths of prompts and responses, of at least a token."""
    rng = np.random.default_rng(seed)
    prompts = lengths(LENGTHS["prompts", "train"], 4 * count, rng)
    prompts = prompts[prompts <= most_prompt][:count]
    responses = lengths(LENGTHS_BY_WRITER["customer", "response"], count, rng)
    return prompts, np.minimum(responses, most_response)


def episode_segments(prompts, responses, most_prompt, most_response):
    """Returns the segments of padded episodes."""
    columns = np.arange(-most_prompt, most_response)
    return ((columns >= -prompts[:, None]) & (columns < responses[:, None])).astype(np.int32)


def share_run(segments, parts):
    """Returns the share of parts that have an episode when these episodes are packed."""
    plan_of = jax.jit(packing.plan, static_argnums=1)(segments, parts)
    rows, length = segments.shape
    filled = (np.asarray(plan_of.sources) < rows * length).any(axis=1)
    return filled.reshape(-1, parts).any(axis=0).mean()


def shares(config, microbatches, parts, widths, seed):
    """Returns mean lengths, shares of columns that are tokens and that run when packed, and the widths of the parts."""
    ppo, data = config.ppo, config.data
    prompts, responses = draw(ppo.batch_size, data.max_prompt, data.max_response, seed)
    segments = episode_segments(prompts, responses, data.max_prompt, data.max_response)
    order = np.random.default_rng(seed).permutation(ppo.batch_size).reshape(-1, ppo.minibatch_size)
    allowed = np.asarray(sampling.halved(data.max_prompt, widths))
    longest = np.sort(prompts).reshape(parts, -1)[:, -1]
    return {
        "prompt": prompts.mean(),
        "response": responses.mean(),
        "tokens": segments.mean(),
        "scoring": share_run(segments, len(order) * microbatches),
        "updates": np.mean([share_run(segments[rows], microbatches) for rows in order]),
        "widths": allowed[np.searchsorted(allowed, longest)],
    }


def operations(config, found, microbatches, parts):
    """Returns the matmul FLOPs of an iteration's parts, padded and packed, by name."""
    base = {"ppo.microbatches": microbatches, "ppo.rollout_parts": parts}
    updates = config.ppo.epochs * config.ppo.batch_size // config.ppo.minibatch_size

    def count(name, **changes):
        changed = plan.override(config, base | {key.replace("__", "."): value for key, value in changes.items()})
        return plan.count_executed_flops(programs.build(name, changed))

    by_width = {width: count("ppo rollout", data__max_prompt=int(width)) for width in np.unique(found["widths"])}
    return {
        "rollout": (count("ppo rollout"), statistics.mean(by_width[width] for width in found["widths"])),
        "scoring": (count("ppo scoring"), found["scoring"] * count("ppo scoring", ppo__pack_episodes=True)),
        "updates": (
            updates * count("ppo update"),
            found["updates"] * updates * count("ppo update", ppo__pack_episodes=True),
        ),
    }


def laps(config, timed):
    """Returns (seconds, processor seconds) of iterations of a network, padded and packed, in turns."""
    prompts, _ = draw(timed.rows, timed.length, timed.length, seed=0)
    steps, states, found = [], [], ([], [])
    for packed in (False, True):
        own = config.copy_and_resolve_references().unlock()
        own.ppo.update(epochs=1, microbatches=8, rollout_parts=4, pack_episodes=packed, rollout_widths=1 + 3 * packed)
        given = workloads.prompt_batch(timed.shape, prompts, timed.length)
        amounts = timed.rows, timed.rows // 2, timed.length
        step, state, rest = workloads.ppo_iteration(timed.shape, own, *amounts, given, timed.ends)
        steps.append(lambda state, step=step, rest=rest: step(state, *rest))
        states.append(state)
    for lap in range(1 + LAPS):
        for i, step in enumerate(steps):
            clock, processor = time.perf_counter(), time.process_time()
            states[i], metrics = jax.block_until_ready(step(states[i]))
            if lap:
                found[i].append((time.perf_counter() - clock, time.process_time() - processor))
    length = metrics["response_tokens"]
    print(f"prompts of {prompts.mean():.0f} tokens, responses of {float(length.total / length.weight):.0f}")
    return [[statistics.median(column) for column in zip(*laps, strict=True)] for laps in found]


def main(run):
    """Counts and prints."""
    config = run.config.copy_and_resolve_references().unlock()
    microbatches, parts, widths = _MICROBATCHES.value, _PARTS.value, _WIDTHS.value
    drawn = [shares(config, microbatches, parts, widths, seed) for seed in range(BATCHES)]
    found = {name: np.mean([one[name] for one in drawn]) for name in drawn[0] if name != "widths"}
    found["widths"] = np.concatenate([one["widths"] for one in drawn])
    print(f"mean of {BATCHES} batches of {config.ppo.batch_size} episodes")
    print(f"prompts of {found['prompt']:.0f} tokens, responses of {found['response']:.0f}")
    print(f"tokens / columns of padded rows: {found['tokens']:.3f}")
    for name in ("scoring", "updates"):
        print(f"{name}: {found[name]:.3f} of these columns; tokens / columns: {found['tokens'] / found[name]:.3f}")
    width = found["widths"].mean()
    slots = (width + config.data.max_response) / (config.data.max_prompt + config.data.max_response)
    print(f"rollout: prompts of {width:.0f} columns instead of {config.data.max_prompt}, {slots:.3f} of the cache")
    for name, (padded, packed) in operations(config, found, microbatches, parts).items():
        print(f"{name}: {padded:.3g} FLOPs padded, {packed:.3g} packed, {packed / padded:.3f}")
    if _TIMED.value:
        timed = TIMED[_TIMED.value]
        (seconds, processor), (packed, packed_processor) = laps(config, timed)
        print(f"an iteration of {_TIMED.value} in {timed.shape.dtype}: {seconds:.2f} s padded, {packed:.2f} s packed")
        print(
            f"processor time: {processor:.2f} s padded, {packed_processor:.2f} s packed; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    command_line.read(main)
