"""The evaluation (section 4.1): every model answers prompts of held-out users, and the answers are judged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from instructjax import files, warning_log
from instructjax.evaluation.intervals import clustered_error, clustered_mean
from instructjax.evaluation.language_models import held_out_loss
from instructjax.models import sizes
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.reporting import figures, findings, report
from instructjax.rollout import samplers
from instructjax.runs import alarms, checkpoint, cost, folder, interruption, metrics_file, processes, progress
from instructjax.runs.best import best_step
from instructjax.sources.source import Answers, Judgement
from instructjax.stages import few_shot, prepare, ranking_report, rewards, selection
from instructjax.stages.rewards import Rewards
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.training import parallel

POLICIES = {"gpt": "pretrain", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}  # models by the stages that made them
PPO = ("ppo", "ppo_ptx")  # one of them may be missing
AGAIN = "sft again"  # another sample of SFT's answers, with which they are compared as the others are


@dataclasses.dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to the test prompts.

    Attributes:
      texts: one answer to each prompt.
      rewards: float[n], by the reward model or the reward function.
      tokens: float[n], the length of each answer, EOS included.
      kl: float[n], the log-ratio of each answer to PPO's initial policy, in nats; None if the model did not see the
        plain prompt, or there is no randomness in its answers (evaluate.temperature = 0).
    """

    texts: list[str]
    rewards: np.ndarray
    tokens: np.ndarray
    kl: np.ndarray | None


def evaluate(run: Run) -> dict[str, Any]:
    """Judges GPT, prompted GPT, SFT, PPO, PPO-ptx and the recipe's guests, and writes the results.

    If either PPO or PPO-ptx was never begun, the other is judged alone.

    Writes WORKDIR/evaluate/answers.jsonl, WORKDIR/results.json and WORKDIR/report.md with its figures, and prints a
    table.

    Args:
      run: with all stages finished.

    Returns:
      The results; the format is in docs/results.md.
    """
    with warning_log.kept_in(run.workdir), parallel.on_mesh(run.config.parallel):
        return _evaluate(run)


def _evaluate(run: Run) -> dict[str, Any]:
    began = time.monotonic()
    run.require("evaluate")
    chosen = selection.selection(run)
    given, elsewhere = rewards.load(run, "evaluate"), run.config.ppo.reward_from or run.config.ppo.reward_function
    steps = _steps(run)
    guests = run.config.evaluate.guests
    stages = [*(POLICIES.get(model, model) for model in steps), *([] if elsewhere else ["reward"])]
    records = run.records(Prompt, "test")[: run.config.evaluate.prompts]
    prompts = [record.prompt for record in records]
    found, losses, prefix = _answer_all(run, steps, given, records)
    baseline, order = found.pop(AGAIN), [*POLICIES, "gpt_prompted", *guests]
    answered = {model: found[model] for model in order if model in found}
    processes.first(lambda: _write_answers(run, prompts, answered))
    judgement = run.source.judge(
        Answers(
            prompts=prompts,
            texts={model: answered[model].texts for model in (*figures.MODELS, *guests) if model in answered},
            baseline=baseline.texts,
            load=run.records,
            rewards=given.of_rankings,
            folder=run.data_folder,
        )
    )
    results: dict[str, Any] = {
        "seed": run.config.seed,
        "config": run.recipe,
        "wall_seconds": None,
        "peak_rss_gib": None,
        "models": _entries(answered, losses, sizes.count_parameters(run.policy_config), prompts, judgement, steps),
        "reward_model": None,
        "data": prepare.summarize(run),
        "few_shot_prefix": prefix,
        "sft_selection": chosen,
        "checkpoints": {stage: checkpoint.fingerprint(run.checkpoints(stage)) for stage in stages},
        **judgement.results,
        **({"tasks": tasks} if (tasks := folder.read_tasks(run.workdir, [*folder.PAPER, *guests])) else {}),
        **({"rankings": rankings} if (rankings := ranking_report.read(run)) else {}),
    }
    results["alignment_tax_recovered"] = findings.alignment_tax(results)
    results["wall_seconds"], results["peak_rss_gib"] = cost.total(run.workdir, evaluate=time.monotonic() - began)
    processes.first(lambda: _report(run, results))
    return results


def _steps(run: Run) -> dict[str, int | None]:
    """Returns the models to judge, guests included, with the step of the checkpoint; None: see `Run.load_policy`."""
    begun = [model for model in PPO if files.exists(run.directory(POLICIES[model]))] or list(PPO)
    steps: dict[str, int | None] = {model: None for model in POLICIES if model not in PPO or model in begun}
    if run.config.evaluate.ppo_checkpoint == "best":
        for model in begun:
            run.checkpoints(POLICIES[model])  # refuses an unfinished stage
            steps[model] = best_step(run.directory(POLICIES[model]))
    return steps | {guest: None for guest in run.config.evaluate.guests}


def _answer_all(
    run: Run, steps: Mapping[str, int | None], given: Rewards, records: Sequence[Prompt]
) -> tuple[dict[str, ModelAnswers], dict[str, float], str | None]:
    """Lets one model after the other answer: only one of them is in memory, next to PPO's initial policy and the RM.

    Returns:
      The answers of each model, and as AGAIN another sample of SFT's; each model's loss on pretraining text, in nats
      per token; and the few-shot prefix of prompted GPT, if there is one.
    """
    config, tokenizer, model = run.config, run.layout.tokenizer, LanguageModel(run.policy_config)
    for name, step in steps.items():
        run.check_policy(POLICIES.get(name, name), step)
    reference = Trained(model, run.load_start("ppo_init", config.ppo.init_from), tokenizer)
    text, text_loss = run.validation_text(), held_out_loss(model)
    answered: dict[str, ModelAnswers] = {}
    losses: dict[str, float] = {}
    prefix = None

    def answer(name: str, policy: Trained[LanguageModel], seed: int) -> ModelAnswers:
        with progress.Bar(f"evaluate: answers of {name}", len(records), "answer") as bar:
            return sample_answers(run, policy, given, reference, records, seed, bar)

    # A model has the same samples with others and without.
    for seed, name in enumerate([*POLICIES, AGAIN, *config.evaluate.guests]):
        if name not in steps:
            continue
        policy = run.load_policy(POLICIES.get(name, name), steps[name])
        answered[name] = answer(name, policy, seed)
        losses[name] = text_loss(policy.params, interruption.stoppable(text, "evaluate"))
        if name == "gpt":
            prefix = few_shot.choose_prefix(run, policy, given)
            if prefix is not None:
                answered["gpt_prompted"] = _prompted_answers(run, policy, given, prefix, records)
            losses["gpt_prompted"] = losses["gpt"]
        if name == "sft":
            answered[AGAIN] = answer(name, policy, len(POLICIES))
        del policy  # before the next one is loaded
    return answered, losses, prefix


def _prompted_answers(
    run: Run, policy: Trained[LanguageModel], given: Rewards, prefix: str, records: Sequence[Prompt]
) -> ModelAnswers:
    """Returns a policy's answers behind a few-shot prefix, with their rewards as answers to the plain prompts."""
    prompts = [record.prompt for record in records]
    texts = few_shot.sample_with_prefix(run, policy, prefix, prompts, jax.random.key(run.config.seed))
    return ModelAnswers(
        texts,
        given.of_texts(records, [[text] for text in texts])[:, 0],
        np.array([len(run.layout.tokenizer.encode(text)) + 1 for text in texts], np.float64),
        None,
    )


def sample_answers(
    run: Run,
    policy: Trained[LanguageModel],
    given: Rewards,
    reference: Trained[LanguageModel],
    records: Sequence[Prompt],
    seed: int,
    bar: progress.Bar,
) -> ModelAnswers:
    """Samples an answer to each prompt, with its reward and its log-ratio to the reference, and moves the bar."""
    section = run.config.evaluate
    sampler = samplers.make_sampler(
        policy.model, run.layout, temperature=section.temperature, batch_size=section.batch_size
    )
    divergence = samplers.make_divergence(policy.model, section.temperature)
    texts: list[str] = []
    columns: list[list[np.ndarray]] = []
    key = jax.random.fold_in(jax.random.key(run.config.seed), seed)
    batches = sampler(policy.params, [record.prompt for record in records], key)
    for episodes, batch in interruption.stoppable(batches, "evaluate"):
        asked = records[len(texts) : len(texts) + len(batch)]
        texts += batch
        measured = [given.of_episodes(asked, episodes, batch), episodes.response_mask.sum(axis=1)]
        if divergence is not None:
            measured.append(divergence(policy.params, reference.params, episodes))
        columns.append([np.asarray(column, np.float64)[: len(batch)] for column in measured])
        bar.add(len(batch))
    scores, tokens, *kl = (np.concatenate(column) for column in zip(*columns, strict=True))
    return ModelAnswers(texts, scores, tokens, kl[0] if kl else None)


def _entries(
    answered: Mapping[str, ModelAnswers],
    losses: Mapping[str, float],
    params: int,
    prompts: Sequence[str],
    judgement: Judgement,
    steps: Mapping[str, int | None],
) -> dict[str, Any]:
    """Returns the entry of each model in results.json; None for a model without answers, as gpt_prompted may be."""
    entries: dict[str, Any] = {model: None for model in figures.MODELS}
    for model, found in answered.items():
        entries[model] = {
            "params": params,
            "true_quality": None,
            "win_rate_vs_sft": None,
            "likert": None,
            "metadata": None,
            "pretrain_loss": losses[model],
            "reward": clustered_mean(found.rewards, prompts).to_dict(),
            "step": steps.get(model),
            **_kl(model, found.kl, prompts),
            "response_tokens": float(found.tokens.mean()),
            **judgement.models.get(model, {}),
        }
    return entries


def _kl(model: str, kl: np.ndarray | None, prompts: Sequence[str]) -> dict[str, float | None]:
    """Returns the mean of a model's log-ratios with its standard error, and warns if it is clearly below 0."""
    if kl is None:
        return {"kl_to_init": None, "kl_standard_error": None}
    mean, error = float(kl.mean()), clustered_error(kl, prompts)
    alarms.warn_of_negative_kl(f"evaluate, {model}", {"kl": mean, "kl_standard_error": error})
    return {"kl_to_init": mean, "kl_standard_error": error}


def _report(run: Run, results: dict[str, Any]) -> None:
    files.write_json(run.workdir / "results.json", results)
    # A reward model may be another run's.
    finished = [stage for stage in folder.PAPER if run.is_finished(stage)]
    curves = {stage: metrics_file.read(run.directory(stage) / "metrics.jsonl") for stage in finished}
    path = report.write_report(run.workdir, results, curves)
    print(report.terminal_table(results))
    print(f"\n{path}")


def _write_answers(run: Run, prompts: Sequence[str], answered: Mapping[str, ModelAnswers]) -> None:
    """Writes one line per prompt, with every model's answer, for people to read."""
    path = run.workdir / "evaluate" / "answers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"prompt": prompt, **{model: found.texts[i] for model, found in answered.items()}}
        for i, prompt in enumerate(prompts)
    )
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
