"""The supervised baseline (section 3.5, appendix C.1), and the choice among its checkpoints."""

from __future__ import annotations

import json
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax.data import pipeline
from instructjax.errors import CheckpointError
from instructjax.models.transformer import LanguageModel
from instructjax.records import Demonstration, Prompt
from instructjax.rollout import answers
from instructjax.stages import language_model, prepare, workspace
from instructjax.training import loop, optimizer


@workspace.timed("sft")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Fine-tunes GPT on demonstrations for `sft.epochs`, into WORKDIR/sft.

    Keeps `sft.candidates` checkpoints, evenly over the run, for `select`.
    """
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    section = config.sft
    records = prepare.load(config, workdir, layout, Demonstration, "train")
    rows = pipeline.demonstration_rows(records, layout, section.prompt_weight)
    steps = pipeline.steps(rows, section.batch_size, section.epochs)
    start = workspace.checkpoints_of(section.init_from, workdir, "pretrain")
    language_model.train(
        "sft",
        config,
        workdir,
        layout,
        shape,
        lambda: workspace.load_language_model(start, shape, layout.tokenizer).params,
        pipeline.shuffled_batches(rows, batch_size=section.batch_size, seed=config.seed),
        optimizer.cosine_schedule(section.learning_rate, steps, final_fraction=section.final_fraction),
        steps=steps,
        validation={
            "demonstration": prepare.validation_demonstrations(config, workdir, layout),
            "text": prepare.validation_text(config, workdir, layout),
        },
        keep_steps=candidates(config, steps),
    )


def candidates(config: ml_collections.ConfigDict, steps: int) -> list[int]:
    """The steps whose checkpoints are kept: multiples of `log.save_every`, and the last."""
    even = np.linspace(0, steps, config.sft.candidates + 1)[1:-1]
    every = config.log.save_every
    return sorted({int(step // every) * every for step in even if step >= every} | {steps})


@workspace.timed("select")
def select(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> int:
    """Chooses the SFT checkpoint whose answers the reward model likes best (appendix C.1).

    Samples an answer to each of `sft.selection_prompts` validation prompts from each
    candidate and writes the mean scores to WORKDIR/sft/selected.json.

    Returns:
      The step of the chosen checkpoint.
    """
    path = _selected(workdir)
    if path.exists():
        return json.loads(path.read_text())["step"]
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    reward = workspace.load_reward_model(workspace.checkpoints_of("", workdir, "reward"), shape, layout.tokenizer)
    scorer = answers.make_scorer(reward.model)
    sampler = answers.make_sampler(
        LanguageModel(shape),
        layout,
        temperature=config.evaluate.temperature,
        batch_size=config.evaluate.batch_size,
    )
    records = prepare.load(config, workdir, layout, Prompt, "validation")
    prompts = [records[i].prompt for i in range(min(len(records), config.sft.selection_prompts))]
    directory = workspace.checkpoints_of("", workdir, "sft")
    summary = json.loads((workspace.stage_directory(workdir, "sft") / "summary.json").read_text())
    scores = {}
    for step in candidates(config, summary["steps"]):
        params = workspace.load_language_model(directory, shape, layout.tokenizer, step=step).params
        rewards = [
            np.asarray(scorer(reward.params, episodes))[: len(texts)]
            for episodes, texts in sampler(params, prompts, jax.random.key(config.seed))
        ]
        scores[step] = float(np.concatenate(rewards).mean())
    chosen = max(scores, key=scores.get)
    loop.write_json(path, {"step": chosen, "reward": scores})
    return chosen


def selection(workdir: epath.PathLike) -> dict[str, Any]:
    """What `select` wrote: {"step": the chosen, "reward": {step: mean score}}.

    Raises:
      CheckpointError: nothing was chosen yet.
    """
    path = _selected(workdir)
    if not path.exists():
        raise CheckpointError(f"{path}: expected the choice among the checkpoints of sft, found none")
    return json.loads(path.read_text())


def _selected(workdir: epath.PathLike) -> epath.Path:
    return workspace.stage_directory(workdir, "sft") / "selected.json"
