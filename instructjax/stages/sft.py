"""The supervised baseline (section 3.5, appendix C.1), and the choice among its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax import files
from instructjax.data import demonstrations, pipeline
from instructjax.data.layouts import TokenizedRanking
from instructjax.errors import CheckpointError
from instructjax.evaluation import reward_models
from instructjax.models.transformer import LanguageModel
from instructjax.records import Demonstration, Prompt
from instructjax.rollout import samplers
from instructjax.runs import checkpoint, processes
from instructjax.stages import language_model, prepare, workspace
from instructjax.training import optimizer, parallel


@workspace.timed("sft")
def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Fine-tunes GPT on demonstrations for `sft.epochs`, into WORKDIR/sft.

    Keeps `sft.candidates` checkpoints, evenly over the run, for `select`.
    """
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    section = config.sft
    records = prepare.load(config, workdir, Demonstration, "train")
    steps = pipeline.steps(records, section.batch_size, section.epochs)
    start = workspace.checkpoints_of(section.init_from, workdir, "pretrain")
    if not workspace.is_finished(workdir, "sft"):
        _selected(workdir).unlink(missing_ok=True)  # chosen among checkpoints that are to change
    language_model.train(
        "sft",
        config,
        workdir,
        layout,
        shape,
        lambda: workspace.load_language_model(start, shape, layout.tokenizer).params,
        lambda: demonstrations.batches(
            records,
            layout,
            batch_size=section.batch_size,
            seed=config.seed,
            steps=steps,
            prompt_weight=section.prompt_weight,
            multiple=parallel.rows_multiple(config.parallel, section.microbatches),
            share=parallel.share_of_rows(),
        ),
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


def select(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> int:
    """Chooses the SFT checkpoint whose answers the reward model likes best (appendix C.1).

    Samples an answer to each of `sft.selection_prompts` validation prompts from each
    candidate and writes the mean scores to WORKDIR/sft/selected.json, unless this reward
    model has chosen among these candidates already.

    Returns:
      The step of the chosen checkpoint.
    """
    prepare.run(config, workdir)
    start = workspace.checkpoints_of(config.ppo.reward_from, workdir, "reward")
    workspace.checkpoints_of("", workdir, "sft")
    summary = files.read_json(workspace.stage_directory(workdir, "sft") / "summary.json")
    judge, steps = checkpoint.fingerprint(start), candidates(config, summary["steps"])
    path = _selected(workdir)
    if path.exists():
        found = files.read_json(path)
        if (found.get("reward_model"), list(found["reward"])) == (judge, [str(step) for step in steps]):
            return found["step"]
    scores = _mean_rewards(config, workdir, start, steps)
    chosen = max(scores, key=scores.get)
    chosen_and_why = {"step": chosen, "reward": scores, "reward_model": judge}
    processes.first(lambda: files.write_json(path, chosen_and_why))
    return chosen


@workspace.timed("select")
def _mean_rewards(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, start: epath.Path, steps: Sequence[int]
) -> dict[int, float]:
    """The mean score, by the reward model in `start`, of the answers of each candidate."""
    layout = prepare.run(config, workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    reward = workspace.load_reward_model(start, workspace.reward_config(config, layout.tokenizer), layout.tokenizer)
    sampler = samplers.make_sampler(
        LanguageModel(shape),
        layout,
        temperature=config.evaluate.temperature,
        batch_size=config.evaluate.batch_size,
    )
    records = prepare.load(config, workdir, Prompt, "validation")
    prompts = [records[i].prompt for i in range(min(len(records), config.sft.selection_prompts))]
    directory = workspace.checkpoints_of("", workdir, "sft")
    answered = []  # by candidate
    for step in steps:
        params = workspace.load_language_model(directory, shape, layout.tokenizer, step=step).params
        sampled = sampler(params, prompts, jax.random.key(config.seed))
        answered.append(
            [tokens for episodes, texts in sampled for tokens in samplers.responses(episodes)[: len(texts)]]
        )
    rankings = [
        TokenizedRanking(layout.prompt(prompt), responses)
        for prompt, *responses in zip(prompts, *answered, strict=True)
    ]
    scores = np.mean(reward_models.rewards(reward, rankings, config.evaluate.batch_size), axis=0)
    return dict(zip(steps, scores.tolist(), strict=True))


def selection(workdir: epath.PathLike) -> dict[str, Any]:
    """What `select` wrote: {"step": the chosen, "reward": {step: mean score}, "reward_model": a fingerprint}.

    Raises:
      CheckpointError: nothing was chosen yet.
    """
    path = _selected(workdir)
    if not path.exists():
        raise CheckpointError(f"{path}: expected the choice among the checkpoints of sft, found none")
    return files.read_json(path)


def _selected(workdir: epath.PathLike) -> epath.Path:
    return workspace.stage_directory(workdir, "sft") / "selected.json"
