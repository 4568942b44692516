"""Compares PPO here with PPO in Hugging Face's TRL, on the same start, reward model and prompts.

    pip install -e '.[parity]'
    python experiments/benchmarks/twins.py --workdir=runs/sandbox --output=runs/twins [--seeds=5] [--iterations=50]

The run must have PPO's initial policy and the reward model. TRL reads our export of both. The settings of the recipe's
section `ppo` hold on both sides, and those of TRL that cannot be chosen hold on ours: no warm-up, moving average or
clipping of gradients, Adam with beta2 = 0.999, and one learning rate for both networks. docs/twins.md lists what still
differs. Seeds choose the order of prompts and the samples.

Every --every iterations both sides are measured by the same code on validation prompts. Each pair of means is compared
by Welch's interval over seeds, with Holm's correction over all pairs: the twins agree if none differs at 5 %. OUTPUT
has a file for each side and seed, from which an interrupted comparison continues, twins.json, and twins.png.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from instructjax import files
from instructjax.algorithms import advantages
from instructjax.algorithms.ppo import Frozen
from instructjax.data import layouts, pipeline
from instructjax.errors import ConfigError
from instructjax.evaluation import two_samples
from instructjax.models import huggingface
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.planning import plan
from instructjax.records import Prompt
from instructjax.reporting import curves, figures
from instructjax.rollout import samplers
from instructjax.runs import checkpoint, progress
from instructjax.stages import exported, ppo
from instructjax.stages.run import Run
from instructjax.training.state import Params

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

import command_line

_OUTPUT = flags.DEFINE_string("output", None, "The folder of the comparison, new or to be continued.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each side.", lower_bound=2)
_ITERATIONS = flags.DEFINE_integer("iterations", 50, "PPO iterations of a run.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 10, "Iterations between measurements.", lower_bound=1)

SIDES = ("instructjax", "TRL")
METRICS = {
    "reward": "reward (RM)",
    "kl": "KL to the start (nats)",
    "entropy": "entropy of a response (nats)",
    "response_tokens": "tokens of a response",
    "true_quality": "true quality",
}
# What TRL's trainer fixes. A norm that no gradient reaches clips none.
OF_TRL = {"optimizer.beta2": 0.999, "optimizer.clip_norm": 1e9, "ppo.warmup_iterations": 0, "ppo.ema_decay": 0.0}

Line = dict[str, float]
Measure = Callable[[Params, jax.Array], Line]  # measure(policy, key of the samples)
Observe = Callable[[int, Callable[[], Params]], None]  # observe(iteration, a function that returns the policy)


@dataclasses.dataclass(frozen=True)
class Start:
    """What both sides start from: the run with TRL's settings, and weights of policy and reward model."""

    run: Run
    policy: Params
    reward: Params


Side = Callable[[Start, int, Observe], None]  # side(start, seed, observe)


def main(run: Run) -> None:
    """Runs both sides, then prints and writes the comparison."""
    output = files.parse(_OUTPUT.value, "--output", schemes=())
    sides = dict(zip(SIDES, (train, train_trl), strict=True))
    start = load(run)
    identity = {
        "ppo_init": checkpoint.fingerprint(run.checkpoints("ppo_init")),
        "reward": checkpoint.fingerprint(run.checkpoints("reward")),
        "ppo": start.run.config.ppo.to_json(),
        "iterations": _ITERATIONS.value,
        "every": _EVERY.value,
    }
    measure = make_measure(start)
    output.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[list[Line]]] = {side: [] for side in SIDES}
    for seed, side in itertools.product(range(_SEEDS.value), SIDES):
        path = output / f"{side.lower()}-{seed}.json"
        runs[side].append(known(path, identity) or finish(sides[side], start, seed, measure, path, identity))
    results = {**identity, "runs": runs, "comparisons": compare(runs)}
    files.write_json(output / "twins.json", results)
    panels = [curves.Panel(title, {name: title}) for name, title in METRICS.items()]
    figures.save(curves.draw_groups(runs, panels), output / "twins.png")
    print("\n".join(lines(results)))


def load(run: Run) -> Start:
    """Returns the start of both sides, with TRL's settings in the recipe."""
    if run.config.ppo.reward_function or run.config.ppo.advantages != "gae" or run.config.lora.rank:
        raise ConfigError("--config: expected PPO with a reward model, a value network and all weights, found another")
    prompt = run.records(Prompt, "validation")[0].prompt
    if "true_quality" not in run.source.measure([prompt], [""]):
        raise ConfigError("--config: expected a source that knows the true quality, such as the sandbox, found none")
    changes = {**OF_TRL, "ppo.value_learning_rate": run.config.ppo.learning_rate}
    changed = dataclasses.replace(run, config=plan.override(run.config, changes))
    return Start(changed, run.load_start("ppo_init"), run.load_reward_model().params)


def known(path: epath.Path, identity: dict[str, Any]) -> list[Line] | None:
    """Returns the measurements of a finished run; None if there are none, or of another start or other settings."""
    if not files.exists(path):
        return None
    found = files.read_json(path)
    return found["measured"] if found["of"] == identity else None


def finish(
    side: Side, start: Start, seed: int, measure: Measure, path: epath.Path, identity: dict[str, Any]
) -> list[Line]:
    """Runs one side with one seed, and writes its measurements."""
    key = jax.random.fold_in(jax.random.key(start.run.config.seed), seed)
    measured = [{"step": 0, **measure(start.policy, key)}]
    with progress.Bar(path.stem, _ITERATIONS.value, "iteration") as bar:

        def observe(iteration: int, params: Callable[[], Params]) -> None:
            if iteration % _EVERY.value == 0 or iteration == _ITERATIONS.value:
                measured.append({"step": iteration, **measure(params(), jax.random.fold_in(key, iteration))})
            bar.add(1)

        side(start, seed, observe)
    files.write_json(path, {"of": identity, "measured": measured})
    return measured


def train(start: Start, seed: int, observe: Observe) -> None:
    """Runs our PPO."""
    run, section = start.run, start.run.config.ppo
    policy, scalar = LanguageModel(run.policy_config), ScalarModel(run.reward_config)
    learners = ppo.make_learners(run.config, section, policy, scalar)
    ends = {"eos_id": run.layout.eos_ids, "pad_id": run.layout.tokenizer.pad_id}
    iterate = ppo.make_programs(run.config, section, learners, scalar, advantages.named(section), **ends)
    step = jax.jit(iterate.step, donate_argnums=0)
    state = ppo.initial_state(*jax.tree.map(jnp.copy, (start.policy, start.reward)), learners, section)
    rows = pipeline.prompt_rows(run.records(Prompt, "train"), run.layout)
    batches = pipeline.shuffled_batches(rows, batch_size=section.batch_size, seed=seed)
    frozen, key = Frozen(start.policy, start.reward), jax.random.key(seed)
    for iteration, batch in enumerate(itertools.islice(batches, _ITERATIONS.value), 1):
        state, _ = step(state, (batch, None), jax.random.fold_in(key, iteration), frozen)
        params = jax.block_until_ready(state.policy.params)
        observe(iteration, lambda params=params: params)


def train_trl(start: Start, seed: int, observe: Observe) -> None:
    """Runs TRL's PPO from our export."""
    from benchmarks import twins_trl  # needs the extra parity

    run = start.run
    rows = [layouts.prompt_row(record, run.layout) for record in run.records(Prompt, "train")]
    prompts = [row.tokens[row.segments > 0].tolist() for row in rows]

    def observe_tensors(iteration: int, tensors: dict[str, np.ndarray]) -> None:
        observe(iteration, lambda: huggingface.params_of(tensors, run.policy_config, "TRL's policy"))

    with tempfile.TemporaryDirectory() as folder:
        policy, reward = (epath.Path(folder) / name for name in ("policy", "reward"))
        exported.export(run, "ppo_init", policy)
        exported.export(run, "reward", reward)
        twins_trl.train(run.config, policy, reward, prompts, seed, _ITERATIONS.value, observe_tensors)


def make_measure(start: Start) -> Measure:
    """Builds `measure(params, key)`: METRICS of answers to the validation prompts."""
    run = start.run
    prompts = [record.prompt for record in run.records(Prompt, "validation")][: run.config.ppo.validation_prompts]
    policy = LanguageModel(run.policy_config)
    sampler = samplers.make_sampler(policy, run.layout, temperature=1.0, batch_size=run.config.evaluate.batch_size)
    score, divergence = samplers.make_scorer(ScalarModel(run.reward_config)), samplers.make_divergence(policy, 1.0)
    assert divergence is not None

    def measure(params: Params, key: jax.Array) -> Line:
        found: dict[str, list[np.ndarray]] = {name: [] for name in METRICS if name != "true_quality"}
        texts: list[str] = []
        for episodes, batch in sampler(params, prompts, key):
            texts += batch
            values = {
                "reward": score(start.reward, episodes),
                "kl": divergence(params, start.policy, episodes),
                "entropy": -jnp.sum(episodes.log_probs, axis=1),
                "response_tokens": jnp.sum(episodes.response_mask, axis=1),
            }
            for name, value in values.items():
                found[name].append(np.asarray(value)[: len(batch)])
        means = {name: float(np.mean(np.concatenate(parts))) for name, parts in found.items()}
        return {**means, "true_quality": run.source.measure(prompts, texts)["true_quality"]}

    return measure


def compare(runs: dict[str, list[list[Line]]]) -> list[dict[str, Any]]:
    """Compares the means of all metrics at all measurements after the start: a row for each."""
    rows = []
    for place, name in itertools.product(range(1, len(runs[SIDES[0]][0])), METRICS):
        ours, theirs = ([measured[place][name] for measured in runs[side]] for side in SIDES)
        found = dataclasses.asdict(two_samples.welch(ours, theirs))
        step = runs[SIDES[0]][0][place]["step"]
        rows.append(
            {"step": step, "metric": name, "ours": float(np.mean(ours)), "theirs": float(np.mean(theirs)), **found}
        )
    adjusted = two_samples.holm([row["p_value"] for row in rows])
    return [{**row, "adjusted_p_value": p} for row, p in zip(rows, adjusted, strict=True)]


def lines(results: dict[str, Any]) -> Sequence[str]:
    """Returns a Markdown table of the comparisons, and whether the twins agree."""
    table = ["| iteration | metric | ours | TRL's | difference | adjusted p |", "| - | - | - | - | - | - |"]
    for row in results["comparisons"]:
        interval = f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        table.append(
            f"| {row['step']} | {METRICS[row['metric']]} | {row['ours']:.3f} | {row['theirs']:.3f} | {interval} | "
            f"{row['adjusted_p_value']:.2f} |"
        )
    apart = [row for row in results["comparisons"] if row["adjusted_p_value"] < 0.05]
    verdict = (
        f"{len(apart)} of {len(results['comparisons'])} differ" if apart else "the twins agree: none differs at 5 %"
    )
    return [*table, "", verdict]


if __name__ == "__main__":
    command_line.read(main)
