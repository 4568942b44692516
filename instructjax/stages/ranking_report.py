"""The report on a reward model and people's rankings, at the end of its stage."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax import files
from instructjax.data import prepared
from instructjax.data.rankings import tokenize_rankings
from instructjax.evaluation import baselines, ranking_report, reward_models
from instructjax.models.transformer import ScalarModel
from instructjax.records import Ranking
from instructjax.reporting import rankings_section
from instructjax.runs import interruption, processes
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained

SPLITS = ("train", "validation", "test")


def path(run: Run) -> epath.Path:
    """Returns the file of the report, WORKDIR/reward/rankings.json."""
    return run.directory("reward") / "rankings.json"


def read(run: Run) -> dict[str, Any] | None:
    """Reads the report on the reward model that the run uses, which `ppo.reward_from` may name; None without one."""
    elsewhere = run.config.ppo.reward_from
    found = files.parse_workdir(elsewhere, "ppo.reward_from").parent / path(run).name if elsewhere else path(run)
    return files.read_json(found) if files.exists(found) else None


def write(run: Run) -> None:
    """Measures the finished reward model on the rankings of all splits and writes rankings.json and rankings.md.

    Does nothing if the report exists. If no ranking is in the test split, as in the sandbox, says so.
    """
    if files.exists(path(run)):
        return
    if "test" not in prepared.split_sizes(run.prepared_folder, prepared.SET_NAMES[Ranking]):
        print("reward: no report on rankings, because none is in the split test")
        return
    found = {split: list(run.records(Ranking, split)) for split in SPLITS}
    reward = run.load_reward_model()
    measured = {**found, "train": found["train"][: len(found["test"])]}
    scored = {split: ranking_rewards(run, reward, rankings) for split, rankings in measured.items()}
    report = {**ranking_report.evaluate_rankings(found, scored), **_candidates(run)}
    if not baselines.can_fit():
        print("reward: the baseline bag_of_words is left out; pip install 'instructjax[tasks]'")
    print(rankings_section.format_line(report))
    processes.first(lambda: _write(run, report))
    print(path(run).with_suffix(".md"))


def ranking_rewards(run: Run, reward: Trained[ScalarModel], rankings: Sequence[Ranking]) -> list[np.ndarray]:
    """Returns the rewards [K] of the answers of each ranking."""
    return reward_models.rewards(
        reward.model,
        reward.params,
        tokenize_rankings(rankings, run.layout),
        pad_id=run.layout.tokenizer.pad_id,
        batch_size=run.config.reward.batch_size,
        over=functools.partial(interruption.stoppable, place="reward"),
    )


def _candidates(run: Run) -> dict[str, Any]:
    chosen = run.directory("reward") / "candidates.json"
    return files.read_json(chosen) if chosen.exists() else {}


def _write(run: Run, report: dict[str, Any]) -> None:
    text = f"# Reward model: rankings\n\n{rankings_section.format_report(report)}\n"
    files.write_text(path(run).with_suffix(".md"), text)
    files.write_json(path(run), report)  # last: its presence means that the report is complete
