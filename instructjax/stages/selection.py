"""The choice among the checkpoints of SFT by the reward model (appendix C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax import files
from instructjax.errors import CheckpointError
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import cost, interruption, processes, progress
from instructjax.stages import rewards, trained
from instructjax.stages.run import Run
from instructjax.training import parallel


def candidates(config: ml_collections.ConfigDict, steps: int, stage: str = "sft") -> list[int]:
    """Returns the steps whose checkpoints are kept: multiples of `log.save_every`, and the last.

    Args:
      config: its key `STAGE.candidates` is the maximum number of steps.
      steps: of the stage.
      stage: "sft" or "reward".
    """
    even = np.linspace(0, steps, config[stage].candidates + 1)[1:-1]
    every = config.log.save_every
    return sorted({int(step // every) * every for step in even if step >= every} | {steps})


def select(run: Run) -> int:
    """Chooses the SFT checkpoint whose answers have the highest rewards, by the reward model or the reward function.

    Samples an answer to each of `sft.selection_prompts` validation prompts from each candidate and writes the mean
    rewards to WORKDIR/sft/selected.json, unless the same model or function has chosen among these candidates already.

    Returns:
      The step of the chosen checkpoint.
    """
    run.require("select")
    reward_model = rewards.identify(run)
    run.checkpoints("sft")
    steps = candidates(run.config, files.read_json(run.directory("sft") / "summary.json")["steps"])
    if files.exists(_selected(run)):
        found = files.read_json(_selected(run))
        if (found.get("reward_model"), list(found["reward"])) == (reward_model, [str(step) for step in steps]):
            return found["step"]
    with cost.timed(run.workdir, "select"), parallel.on_mesh(run.config.parallel):
        scores = _mean_rewards(run, steps)
    chosen = max(scores, key=lambda step: scores[step])
    processes.first(
        lambda: files.write_json(_selected(run), {"step": chosen, "reward": scores, "reward_model": reward_model})
    )
    return chosen


def selection(run: Run) -> dict[str, Any]:
    """Reads what `select` wrote: {"step": the chosen, "reward": {step: mean}, "reward_model": see `identify`}.

    Raises:
      CheckpointError: nothing was chosen yet, or another reward model has chosen.
    """
    if not files.exists(_selected(run)):
        raise CheckpointError(f"{_selected(run)}: expected the choice among the checkpoints of sft, found none")
    found, reward_model = files.read_json(_selected(run)), rewards.identify(run)
    if found.get("reward_model") != reward_model:
        raise CheckpointError(
            f"{_selected(run)}: expected the choice of the reward model {reward_model}, found that of "
            f"{found.get('reward_model')}; run experiments/reward.py or reproduce.py again"
        )
    return found


def forget(run: Run) -> None:
    """Removes the choice, because the checkpoints are about to change."""
    _selected(run).unlink(missing_ok=True)


def _mean_rewards(run: Run, steps: Sequence[int]) -> dict[int, float]:
    """Returns the mean reward of the answers of each candidate."""
    config, layout = run.config, run.layout
    given = rewards.load(run, "select")
    size = config.evaluate.batch_size
    sampler = samplers.make_sampler(
        LanguageModel(run.policy_config), layout, temperature=config.evaluate.temperature, batch_size=size
    )
    records = run.records(Prompt, "validation")[: config.sft.selection_prompts]
    prompts = [record.prompt for record in records]
    means = {}
    with progress.Bar("select: answers", len(steps) * len(prompts), "answer") as bar:
        for step in steps:
            policy = trained.load_policy(run.checkpoints("sft"), run.policy_config, layout.tokenizer, step=step)
            scores: list[float] = []
            batches = sampler(policy.params, prompts, jax.random.key(config.seed))
            for episodes, texts in interruption.stoppable(batches, "select"):
                asked = records[len(scores) : len(scores) + len(texts)]
                scores += given.of_episodes(asked, episodes, texts).tolist()
                bar.add(len(texts))
            means[step] = float(np.mean(scores))
    return means


def _selected(run: Run) -> epath.Path:
    return run.directory("sft") / "selected.json"
