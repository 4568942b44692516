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
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.reporting import figures, findings, report
from instructjax.rollout import samplers
from instructjax.runs import alarms, checkpoint, cost, folder, metrics_file, processes, progress
from instructjax.runs.best import best_step
from instructjax.sources.source import Answers, Judgement
from instructjax.stages import few_shot, prepare, ranking_report, selection
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.training import parallel

POLICIES = {"gpt": "pretrain", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}  # models by the stages that made them
PPO = ("ppo", "ppo_ptx")  # one of them may be missing


@dataclasses.dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to the test prompts.

    Attributes:
      texts: one answer to each prompt.
      rewards: float[n], the reward model's.
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
    reward = run.load_reward_model(run.config.ppo.reward_from)
    steps = _steps(run)
    policies = {model: run.load_policy(POLICIES[model], step) for model, step in steps.items()}
    guests = {stage: run.load_policy(stage) for stage in run.config.evaluate.guests}
    stages = [*(POLICIES[model] for model in policies), *guests, *([] if run.config.ppo.reward_from else ["reward"])]
    trained = [*folder.PAPER, *guests]
    prompts = [record.prompt for record in run.records(Prompt, "test")[: run.config.evaluate.prompts]]
    prefix = few_shot.choose_prefix(run, policies["gpt"], reward)
    count = len(policies) + len(guests) + 1 + (prefix is not None)
    with progress.Bar("evaluate: answers", count * len(prompts), "answer") as bar:
        answered, baseline = _answer_all(run, policies, guests, reward, prompts, prefix, bar)
    processes.first(lambda: _write_answers(run, prompts, answered))
    losses = _text_losses(run, policies | guests)
    params = sum(leaf.size for leaf in jax.tree.leaves(policies["gpt"].params))
    judgement = run.source.judge(
        Answers(
            prompts=prompts,
            texts={model: answered[model].texts for model in (*figures.MODELS, *guests) if model in answered},
            baseline=baseline.texts,
            load=run.records,
            rewards=lambda rankings: ranking_report.ranking_rewards(run, reward, rankings),
            folder=run.data_folder,
        )
    )
    results: dict[str, Any] = {
        "seed": run.config.seed,
        "config": run.recipe,
        "wall_seconds": None,
        "peak_rss_gib": None,
        "models": _entries(answered, losses, params, prompts, judgement, steps),
        "reward_model": None,
        "data": prepare.summarize(run),
        "few_shot_prefix": prefix,
        "sft_selection": chosen,
        "checkpoints": {stage: checkpoint.fingerprint(run.checkpoints(stage)) for stage in stages},
        **judgement.results,
        **({"tasks": tasks} if (tasks := folder.read_tasks(run.workdir, trained)) else {}),
        **({"rankings": rankings} if (rankings := ranking_report.read(run)) else {}),
    }
    results["alignment_tax_recovered"] = findings.alignment_tax(results)
    results["wall_seconds"], results["peak_rss_gib"] = cost.total(run.workdir, evaluate=time.monotonic() - began)
    processes.first(lambda: _report(run, results))
    return results


def _steps(run: Run) -> dict[str, int | None]:
    """Returns the models to judge, each with the step of its checkpoint; None for that of `Run.load_policy`."""
    begun = [model for model in PPO if files.exists(run.directory(POLICIES[model]))] or list(PPO)
    steps: dict[str, int | None] = {model: None for model in POLICIES if model not in PPO or model in begun}
    if run.config.evaluate.ppo_checkpoint == "best":
        for model in begun:
            run.checkpoints(POLICIES[model])  # refuses an unfinished stage
            steps[model] = best_step(run.directory(POLICIES[model]))
    return steps


def _answer_all(
    run: Run,
    policies: Mapping[str, Trained[LanguageModel]],
    guests: Mapping[str, Trained[LanguageModel]],
    reward: Trained[ScalarModel],
    prompts: Sequence[str],
    prefix: str | None,
    bar: progress.Bar,
) -> tuple[dict[str, ModelAnswers], ModelAnswers]:
    """Returns the answers of each model, and a second sample of SFT's, with which all models are compared."""
    config, tokenizer = run.config, run.layout.tokenizer
    reference = Trained(LanguageModel(run.policy_config), run.load_start("ppo_init", config.ppo.init_from), tokenizer)

    def answer(policy: Trained[LanguageModel], seed: int) -> ModelAnswers:
        return sample_answers(run, policy, reward, reference, prompts, seed, bar)

    # A model has the same samples with others and without.
    answered = {model: answer(policies[model], seed) for seed, model in enumerate(POLICIES) if model in policies}
    if prefix is not None:
        texts = few_shot.sample_with_prefix(run, policies["gpt"], prefix, prompts, jax.random.key(config.seed))
        answered["gpt_prompted"] = ModelAnswers(
            texts,
            few_shot.score_texts(run, reward, prompts, [[text] for text in texts])[:, 0],
            np.array([len(tokenizer.encode(text)) + 1 for text in texts], np.float64),
            None,
        )
        bar.add(len(prompts))
    baseline = answer(policies["sft"], len(POLICIES))
    for seed, (guest, policy) in enumerate(guests.items(), start=len(POLICIES) + 1):
        answered[guest] = answer(policy, seed)
    return answered, baseline


def sample_answers(
    run: Run,
    policy: Trained[LanguageModel],
    reward: Trained[ScalarModel],
    reference: Trained[LanguageModel],
    prompts: Sequence[str],
    seed: int,
    bar: progress.Bar,
) -> ModelAnswers:
    """Samples an answer to each prompt, with its reward and its log-ratio to the reference, and moves the bar."""
    section = run.config.evaluate
    sampler = samplers.make_sampler(
        policy.model, run.layout, temperature=section.temperature, batch_size=section.batch_size
    )
    scorer = samplers.make_scorer(reward.model)
    divergence = samplers.make_divergence(policy.model, section.temperature)
    texts: list[str] = []
    columns: list[list[np.ndarray]] = []
    key = jax.random.fold_in(jax.random.key(run.config.seed), seed)
    for episodes, batch in sampler(policy.params, prompts, key):
        texts += batch
        measured = [scorer(reward.params, episodes), episodes.response_mask.sum(axis=1)]
        if divergence is not None:
            measured.append(divergence(policy.params, reference.params, episodes))
        columns.append([np.asarray(column, np.float64)[: len(batch)] for column in measured])
        bar.add(len(batch))
    rewards, tokens, *kl = (np.concatenate(column) for column in zip(*columns, strict=True))
    return ModelAnswers(texts, rewards, tokens, kl[0] if kl else None)


def _text_losses(run: Run, policies: Mapping[str, Trained[LanguageModel]]) -> dict[str, float]:
    """Returns each policy's loss on pretraining text, in nats per token."""
    text, loss = run.validation_text(), held_out_loss(LanguageModel(run.policy_config))
    losses = {}
    with progress.Bar("evaluate: loss on text", len(policies), "model") as bar:
        for model, policy in policies.items():
            losses[model] = loss(policy.params, text)
            bar.add(1)
    return losses | {"gpt_prompted": losses["gpt"]}


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
