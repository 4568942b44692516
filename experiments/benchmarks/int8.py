"""Compares a policy that decodes with weights in int8 with the same policy as trained: bytes, KL, answers and speed.

    python experiments/benchmarks/int8.py --workdir=runs/sandbox --measured=ppo_ptx

The KL divergence is that of whole vocabularies, before each token of answers that the policy as trained samples at
temperature 1. The last line has what PPO would measure of rollouts in int8: `sampler_deviation` and `sampler_kl`. Rates
count the tokens of greedy answers, including EOS; the two sides take turns. A rate per second of CPU time depends less
on other programs than one per second on the clock.
"""

import dataclasses
import pathlib
import statistics
import sys
import time

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.evaluation.intervals import clustered_mean
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import episode, samplers
from instructjax.training import parallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks.tables import markdown, number

_MEASURED = flags.DEFINE_string("measured", "ppo_ptx", "The stage whose policy is measured.")
_ANSWERED = flags.DEFINE_integer("answered", 400, "The first test prompts are answered.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each side.", lower_bound=1)


def decoded_bytes(model, params):
    """Counts the bytes of the weights that decoding reads for each token, without tables of which it reads a row."""
    flat = flax.traverse_util.flatten_dict(jax.eval_shape(model.decoding_params, params), sep="/")
    tables = {"trunk/position_embedding"}
    if "rounded" in flat or not model.config.tied:
        tables |= {"trunk/token_embedding"}
    if "rounded" in flat:
        tables |= {"unembedding"}
    read = [leaf for name, leaf in flat.items() if name not in tables]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))


def divergence(model, params, other, episodes):
    """Computes KL(model to other), float32[B, R], in nats, before each token of the responses; 0 on padding.

    The other model computes with its `decoding_params`, all tokens at once.
    """

    @jax.jit
    def compute(params, episodes):
        row, size = (episodes.tokens, episodes.segments, episodes.positions), episodes.response_mask.shape[1]
        ours, theirs = (
            jax.nn.log_softmax(logits[:, -size - 1 : -1])
            for logits in (
                model.apply({"params": params}, *row)[0],
                other.apply({"params": other.decoding_params(params)}, *row)[0],
            )
        )
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1) * episodes.response_mask

    return np.asarray(compute(params, episodes), np.float64)


def log_ratios(model, params, episodes):
    """Computes log π - log μ, float32[B, R], of tokens that a sampler μ drew; 0 on padding."""
    found = jax.jit(lambda *given: episode.response_log_probs(model, *given))(params, episodes)
    return np.asarray((found - episodes.log_probs) * episodes.response_mask)


def main(run):
    """Prints a table with a row for each type of weights."""
    policy, layout = run.open_policy(_MEASURED.value)
    prompts = [record.prompt for record in run.records(Prompt, "test")[: _ANSWERED.value]]
    plain, int8 = (
        LanguageModel(dataclasses.replace(policy.model.config, decoding_dtype=dtype)) for dtype in ("", "int8")
    )
    key, size = jax.random.key(0), len(prompts)
    with parallel.on_mesh(run.config.parallel):
        drawn = [samplers.make_sampler(model, layout, temperature=1.0, batch_size=size) for model in (plain, int8)]
        ((episodes, _),), ((rollout, _),) = (sampler(policy.params, prompts, key) for sampler in drawn)
        ratios = log_ratios(plain, policy.params, rollout)
        kl, mask = divergence(plain, policy.params, int8, episodes), np.asarray(episodes.response_mask) > 0
        greedy = [samplers.make_sampler(model, layout, temperature=0.0, batch_size=size) for model in (plain, int8)]
        answers, rates = [], []
        for _ in range(1 + _TURNS.value):  # the first turn compiles
            answers, seconds = [], []
            for sampler in greedy:
                began = time.monotonic(), time.process_time()
                ((found, _),) = sampler(policy.params, prompts, key)
                answers.append(samplers.responses(found))
                seconds.append((time.monotonic() - began[0], time.process_time() - began[1]))
            rates.append([[sum(map(len, a)) / s for s in both] for a, both in zip(answers, seconds, strict=True)])
    estimate = clustered_mean(kl[mask], np.repeat(prompts, mask.sum(axis=1)))
    equal = np.mean([one == other for one, other in zip(*answers, strict=True)])
    differences = [
        ("0", "100%"),
        (f"{estimate.mean:.2e} ± {(estimate.high - estimate.low) / 2:.2e}", f"{equal:.0%}"),
    ]
    lines = [
        [
            model.config.decoding_dtype or model.config.resolved_matmul_dtype,
            f"{decoded_bytes(model, policy.params):,}",
            *differences[side],
            *(number(statistics.median(turn[side][clock] for turn in rates[1:])) for clock in (0, 1)),
        ]
        for side, model in enumerate((plain, int8))
    ]
    head = ["weights", "bytes read per token", "KL", "greedy answers equal", "tokens/s", "tokens per CPU second"]
    print(markdown(head, lines))
    sampler_kl = np.sum(0.5 * ratios**2) / np.sum(rollout.response_mask)
    print(
        f"{size} prompts, {int(mask.sum())} tokens; largest KL before a token {kl.max():.2g}; "
        f"sampler_deviation {np.abs(ratios).max():.2g}, sampler_kl {sampler_kl:.2g}"
    )


if __name__ == "__main__":
    command_line.read(main)
