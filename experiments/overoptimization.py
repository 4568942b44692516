"""Measures how far optimizing against the reward model raises the true reward: best of n, and PPO if it was trained.

    python experiments/overoptimization.py --workdir=runs/sandbox [--samples=64] [--prompts=200]

The policy of --stage answers each validation prompt --samples times. From this one pool the expected true reward of the
best of n answers, by the reward model, is estimated without bias. The source of the records gives the true reward, so
it must have one, as the sandbox does. PPO's rows are the evaluations in its metrics.jsonl.

Prints a table, and for each method a fit of the law of Gao et al. 2022 (arXiv 2210.10760). Writes
WORKDIR/overoptimization.json.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import command_line
import jax
import numpy as np
from absl import flags

from instructjax import files
from instructjax.errors import ConfigError, DataError
from instructjax.evaluation import overoptimization
from instructjax.evaluation.intervals import clustered_mean
from instructjax.records import Prompt
from instructjax.runs import metrics_file, progress
from instructjax.stages import answers, rewards
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel

_STAGE = flags.DEFINE_string("stage", "sft", "The stage whose policy answers.")
_SAMPLES = flags.DEFINE_integer("samples", 64, "Answers to each prompt, and the largest n.", lower_bound=4)
_PROMPTS = flags.DEFINE_integer("prompts", 200, "The first prompts of the validation split.", lower_bound=2)

PPO = ("ppo", "ppo_ptx")
TRUE = "true_quality"  # the metric that `Source.measure` gives where the truth is known


def main(run: Run) -> None:
    """Prints and writes the curves and their fits."""
    asked = run.records(Prompt, "validation")[: _PROMPTS.value]
    prompts = [record.prompt for record in asked]
    if TRUE not in run.source.measure(prompts[:1], [""]):
        raise ConfigError("--config: expected a source that knows the true reward, such as the sandbox, found none")
    with parallel.on_mesh(run.config.parallel):
        texts = _sample(run, prompts)
        proxy = rewards.load(run, "overoptimization").of_texts(asked, texts)
    gold = np.array(
        [[run.source.measure([p], [text])[TRUE] for text in row] for p, row in zip(prompts, texts, strict=True)]
    )
    curves = {"best of n": best_of_n_curve(prompts, proxy, gold)}
    for stage in PPO:
        path = run.directory(stage) / "metrics.jsonl"
        if files.exists(path):
            curves[stage] = ppo_curve(metrics_file.read(path))
    results = {
        "stage": _STAGE.value,
        "samples": _SAMPLES.value,
        "prompts": len(prompts),
        "curves": curves,
        "fits": {name: _fit(name, rows) for name, rows in curves.items()},
    }
    files.write_json(run.workdir / "overoptimization.json", results)
    print("\n".join(lines(results)))


def _sample(run: Run, prompts: Sequence[str]) -> list[list[str]]:
    """Returns --samples answers to each prompt."""
    policy, layout = run.open_policy(_STAGE.value)
    section, count = run.config.evaluate, _SAMPLES.value
    sampling = Sampling(temperature=section.temperature or 1.0, batch_size=section.batch_size)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    with progress.Bar(f"{_STAGE.value}: answers", len(repeated), "answer") as bar:
        drawn = answers.answer(policy, layout, repeated, jax.random.key(run.config.seed), sampling)
        texts = [layout.truncate(text) for _, text in bar.over(drawn, size=lambda _: 1)]
    return [texts[i : i + count] for i in range(0, len(texts), count)]


def best_of_n_curve(prompts: Sequence[str], proxy: np.ndarray, gold: np.ndarray) -> list[dict[str, Any]]:
    """Returns a row for each power of two up to the size of the pool.

    Args:
      prompts: [P] texts; intervals are clustered by them.
      proxy: float[P, N], the rewards that choose.
      gold: float[P, N], the true rewards.
    """
    powers = range(int(math.log2(proxy.shape[1])) + 1)
    return [
        {
            "n": 2**power,
            "kl": overoptimization.best_of_n_kl(2**power),
            "proxy": clustered_mean(overoptimization.best_of_n(proxy, proxy, 2**power), prompts).to_dict(),
            "gold": clustered_mean(overoptimization.best_of_n(proxy, gold, 2**power), prompts).to_dict(),
        }
        for power in powers
    ]


def ppo_curve(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Returns a row for each evaluation of PPO; a KL that was measured below 0 counts as 0."""
    return [
        {
            "step": int(line["step"]),
            "kl": max(line["validation_kl"], 0.0),
            "proxy": {"mean": line["validation_reward"]},
            "gold": {"mean": line[TRUE]},
        }
        for line in metrics
        if {"validation_kl", "validation_reward", TRUE} <= line.keys()
    ]


def _fit(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Fits the method's law to the gain over the first row; None for too few rows."""
    gold = np.array([row["gold"]["mean"] for row in rows])
    law: overoptimization.Law = "best of n" if name == "best of n" else "rl"
    try:
        found = overoptimization.fit(law, np.array([row["kl"] for row in rows]), gold - gold[:1].sum())
    except DataError:
        return None
    return {**dataclasses.asdict(found), "peak": found.peak}


def lines(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines to print."""
    printed = []
    for name, rows in results["curves"].items():
        unit = "n" if name == "best of n" else "step"
        printed.append(f"{name:>10} {unit:>5} {'KL':>7} {'proxy':>16} {'true':>16}")
        printed += [
            f"{'':>10} {row[unit]:5} {row['kl']:7.3f} {_estimate(row['proxy']):>16} {_estimate(row['gold']):>16}"
            for row in rows
        ]
        if fit := results["fits"][name]:
            slope = "d" if fit["law"] == "best of n" else "log d"
            printed.append(
                f"{'':>10} gain = d ({fit['alpha']:.4f} - {fit['beta']:.4f} {slope}), d = sqrt(KL); "
                f"R^2 {fit['r_squared']:.4f}; largest at KL {fit['peak']:.3g}"
            )
    return printed


def _estimate(found: Mapping[str, float]) -> str:
    half = f" ± {(found['high'] - found['low']) / 2:.3f}" if "high" in found else ""
    return f"{found['mean']:.3f}{half}"


if __name__ == "__main__":
    command_line.run(main)
