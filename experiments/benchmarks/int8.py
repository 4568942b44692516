"""Compares a policy that decodes in int8 with the policy as trained: bytes, KL, answers and speed.

    python experiments/benchmarks/int8.py --workdir=runs/sandbox --measured=ppo_ptx

The KL divergence is that of whole vocabularies, before each token of answers that the policy as trained samples at
temperature 1. `sampler_deviation` and `sampler_kl` are what PPO would measure of rollouts with these weights. Rates
count the tokens of greedy answers, including EOS; the types take turns. A rate per second of CPU time depends less on
other programs than one per second on the clock.
"""

import dataclasses
import os
import pathlib
import sys
import time

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from instructjax.evaluation.intervals import clustered_mean
from instructjax.models.config import DECODING_DTYPES
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import episode
from instructjax.rollout.samplers import make_sampler, responses
from instructjax.training import parallel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

from benchmarks.tables import markdown, number

_MEASURED = flags.DEFINE_string("measured", "ppo_ptx", "The stage whose policy is measured.")
_ANSWERED = flags.DEFINE_integer("answered", 400, "The first test prompts are answered.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each type of weights.", lower_bound=1)


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


def turns(samplers, params, prompts, key):
    """Runs samplers in turns. Returns the answers of each and its median tokens per second and per CPU second."""
    rates = []
    for _ in range(1 + _TURNS.value):  # the first turn compiles
        answers, turn = [], []
        for sampler in samplers:
            began = time.monotonic(), time.process_time()
            ((found, _),) = sampler(params, prompts, key)
            answers.append(responses(found))
            tokens = sum(map(len, answers[-1]))
            turn.append((tokens / (time.monotonic() - began[0]), tokens / (time.process_time() - began[1])))
        rates.append(turn)
    return answers, np.median(rates[1:], axis=0)


def main(run):
    """Prints a table with a row for each type of weights."""
    policy, layout = run.open_policy(_MEASURED.value)
    prompts = [record.prompt for record in run.records(Prompt, "test")[: _ANSWERED.value]]
    given = policy.params, prompts, jax.random.key(0)
    models = [
        LanguageModel(dataclasses.replace(policy.model.config, decoding_dtype=dtype))
        for dtype in ("", *DECODING_DTYPES)
    ]

    def samplers(temperature):
        return [make_sampler(model, layout, temperature=temperature, batch_size=len(prompts)) for model in models]

    with parallel.on_mesh(run.config.parallel):
        rollouts = [rollout for sampler in samplers(1.0) for rollout, _ in sampler(*given)]
        episodes = rollouts[0]
        mask = np.asarray(episodes.response_mask) > 0
        divergences = [divergence(models[0], policy.params, model, episodes)[mask] for model in models]
        ratios = [log_ratios(models[0], policy.params, rollout) for rollout in rollouts]
        answers, rates = turns(samplers(0.0), *given)
    columns = []
    for kl, ratio, rollout, found in zip(divergences, ratios, rollouts, answers, strict=True):
        estimate = clustered_mean(kl, np.repeat(prompts, mask.sum(axis=1)))
        columns.append(
            [
                f"{estimate.mean:.2e} ± {(estimate.high - estimate.low) / 2:.2e}",
                f"{np.mean([one == other for one, other in zip(answers[0], found, strict=True)]):.0%}",
                f"{np.abs(ratio).max():.2g}",
                f"{np.sum(0.5 * ratio**2) / np.sum(rollout.response_mask):.2g}",
            ]
        )
    lines = [
        [
            model.config.decoding_dtype or model.config.resolved_matmul_dtype,
            f"{decoded_bytes(model, policy.params):,}",
            *column,
            *map(number, rate),
        ]
        for model, column, rate in zip(models, columns, rates, strict=True)
    ]
    head = ["weights", "bytes read per token", "KL", "greedy answers equal", "`sampler_deviation`", "`sampler_kl`"]
    print(markdown([*head, "tokens/s", "tokens per CPU second"], lines))
    print(f"{len(prompts)} prompts, {int(mask.sum())} tokens; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    command_line.read(main)
