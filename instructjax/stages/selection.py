"""The choice among the checkpoints of SFT by the reward model (appendix C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax import files
from instructjax.data.layouts import TokenizedRanking
from instructjax.errors import CheckpointError
from instructjax.evaluation import reward_models
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import checkpoint, cost, processes, progress
from instructjax.stages import trained
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
    """Chooses the SFT checkpoint whose answers the reward model scores highest.

    Samples an answer to each of `sft.selection_prompts` validation prompts from each candidate and writes the mean
    scores to WORKDIR/sft/selected.json, unless this reward model has chosen among these candidates already.

    Returns:
      The step of the chosen checkpoint.
    """
    run.require("select")
    reward_model = _reward_model(run)
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
    """Reads what `select` wrote: {"step": the chosen, "reward": {step: mean score}, "reward_model": a fingerprint}.

    Raises:
      CheckpointError: nothing was chosen yet, or another reward model has chosen.
    """
    if not files.exists(_selected(run)):
        raise CheckpointError(f"{_selected(run)}: expected the choice among the checkpoints of sft, found none")
    found, reward_model = files.read_json(_selected(run)), _reward_model(run)
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
    """Returns the mean score of the answers of each candidate."""
    config, layout = run.config, run.layout
    reward = run.load_reward_model(config.ppo.reward_from)
    sampler = samplers.make_sampler(
        LanguageModel(run.policy_config),
        layout,
        temperature=config.evaluate.temperature,
        batch_size=config.evaluate.batch_size,
    )
    records = run.records(Prompt, "validation")
    prompts = [records[i].prompt for i in range(min(len(records), config.sft.selection_prompts))]
    answered = []  # by candidate
    with progress.Bar("select: answers", len(steps) * len(prompts), "answer") as bar:
        for step in steps:
            policy = trained.load_policy(run.checkpoints("sft"), run.policy_config, layout.tokenizer, step=step)
            sampled = sampler(policy.params, prompts, jax.random.key(config.seed))
            batches = bar.over(samplers.responses(episodes)[: len(texts)] for episodes, texts in sampled)
            answered.append([tokens for batch in batches for tokens in batch])
    rankings = [
        TokenizedRanking(layout.encode_prompt(prompt), responses)
        for prompt, *responses in zip(prompts, *answered, strict=True)
    ]
    scores = reward_models.rewards(
        reward.model,
        reward.params,
        rankings,
        pad_id=layout.tokenizer.pad_id,
        batch_size=config.evaluate.batch_size,
    )
    return dict(zip(steps, np.mean(scores, axis=0).tolist(), strict=True))


def _reward_model(run: Run) -> str:
    """Returns the fingerprint of the reward model that chooses."""
    return checkpoint.fingerprint(run.checkpoints("reward", run.config.ppo.reward_from))


def _selected(run: Run) -> epath.Path:
    return run.directory("sft") / "selected.json"
