"""The evaluation (section 4.1): every model answers the prompts of held-out users, and is judged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from instructjax import files
from instructjax.data.layouts import Layout
from instructjax.evaluation.intervals import clustered_mean
from instructjax.evaluation.language_models import held_out_loss
from instructjax.evaluation.tasks.results import read_stages
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.reporting import figures, findings, report
from instructjax.rollout import samplers
from instructjax.runs import cost, folder, metrics_file, processes, progress
from instructjax.sources.source import Answers, Judgement
from instructjax.stages import few_shot, ranking_report, selection
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained
from instructjax.training import parallel

POLICIES = {"gpt": "pretrain", "sft": "sft", "ppo": "ppo", "ppo_ptx": "ppo_ptx"}  # models by the stages that made them


@dataclasses.dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to the test prompts.

    Attributes:
      texts: one answer to each prompt.
      rewards: float[n], the reward model's.
      tokens: float[n], the length of each answer, EOS included.
      kl: float[n], the log-ratio of each answer to PPO's initial policy, in nats; None if the model did not see the
        plain prompt.
    """

    texts: list[str]
    rewards: np.ndarray
    tokens: np.ndarray
    kl: np.ndarray | None


def evaluate(run: Run) -> dict[str, Any]:
    """Judges GPT, prompted GPT, SFT, PPO, PPO-ptx and the recipe's guests, and writes the results.

    Writes WORKDIR/evaluate/answers.jsonl, WORKDIR/results.json and WORKDIR/report.md with its figures, and prints a
    table.

    Args:
      run: with all stages finished.

    Returns:
      The results; the format is in docs/results.md.
    """
    with parallel.on_mesh(run.config.parallel):
        return _evaluate(run)


def _evaluate(run: Run) -> dict[str, Any]:
    began = time.monotonic()
    _ = run.layout  # refuses a recipe or records that are not what they should be
    chosen = selection.selection(run)
    reward = run.load_reward_model(run.config.ppo.reward_from)
    policies = {model: run.load_policy(stage) for model, stage in POLICIES.items()}
    guests = {stage: run.load_policy(stage) for stage in run.config.evaluate.guests}
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
        "models": _entries(answered, losses, params, prompts, judgement),
        "reward_model": None,
        "few_shot_prefix": prefix,
        "sft_selection": chosen,
        **judgement.results,
        **({"tasks": tasks} if (tasks := results_of_tasks(run)) else {}),
        **({"rankings": rankings} if (rankings := ranking_report.read(run)) else {}),
    }
    results["alignment_tax_recovered"] = findings.alignment_tax(results)
    results["wall_seconds"], results["peak_rss_gib"] = cost.total(run.workdir, evaluate=time.monotonic() - began)
    processes.first(lambda: _report(run, results))
    return results


def results_of_tasks(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Reads what `experiments/benchmark_tasks.py` has measured on the run's policies, by stage."""
    return read_stages(run.workdir, [*folder.PAPER, *run.config.evaluate.guests])


def _answer_all(
    run: Run,
    policies: Mapping[str, Trained[LanguageModel]],
    guests: Mapping[str, Trained[LanguageModel]],
    reward: Trained[ScalarModel],
    prompts: Sequence[str],
    prefix: str | None,
    bar: progress.Bar,
) -> tuple[dict[str, ModelAnswers], ModelAnswers]:
    """Returns the answers of each model, and another sample of SFT's, which it is compared with as the others are."""
    config, tokenizer = run.config, run.layout.tokenizer
    reference = Trained(LanguageModel(run.policy_config), run.load_start("ppo_init", config.ppo.init_from), tokenizer)

    def answer(policy: Trained[LanguageModel], seed: int) -> ModelAnswers:
        return sample_answers(run, policy, reward, reference, prompts, seed, bar)

    answered = {model: answer(policy, seed) for seed, (model, policy) in enumerate(policies.items())}
    if prefix is not None:
        texts = few_shot.sample_with_prefix(run, policies["gpt"], prefix, prompts, jax.random.key(config.seed))
        answered["gpt_prompted"] = ModelAnswers(
            texts,
            few_shot.score_texts(run, reward, prompts, [[text] for text in texts])[:, 0],
            np.array([len(tokenizer.encode(text)) + 1 for text in texts], np.float64),
            None,
        )
        bar.add(len(prompts))
    baseline = answer(policies["sft"], len(policies))
    # Guests come after the others, which then have the same samples with guests and without.
    for seed, (guest, policy) in enumerate(guests.items(), start=len(policies) + 1):
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
    scorer, divergence = samplers.make_scorer(reward.model), samplers.make_divergence(policy.model)
    texts: list[str] = []
    columns: list[list[np.ndarray]] = []
    key = jax.random.fold_in(jax.random.key(run.config.seed), seed)
    for episodes, batch in sampler(policy.params, prompts, key):
        texts += batch
        measured = (
            scorer(reward.params, episodes),
            episodes.response_mask.sum(axis=1),
            divergence(policy.params, reference.params, episodes),
        )
        columns.append([np.asarray(column, np.float64)[: len(batch)] for column in measured])
        bar.add(len(batch))
    return ModelAnswers(texts, *(np.concatenate(column) for column in zip(*columns, strict=True)))


def answer(
    run: Run, policy: Trained[LanguageModel], layout: Layout, prompts: Sequence[str], key: jax.Array
) -> Iterator[tuple[str, str]]:
    """Yields (prompt, a sampled answer) for each prompt.

    Args:
      run: its section `evaluate` gives temperature and batch size.
      policy: the model that answers.
      layout: of its prompts and responses, as its checkpoint describes it.
      prompts: texts.
      key: of the samples.
    """
    section = run.config.evaluate
    sampler = samplers.make_sampler(
        policy.model, layout, temperature=section.temperature, batch_size=min(len(prompts), section.batch_size)
    )
    texts = (text for _, batch in sampler(policy.params, prompts, key) for text in batch)
    yield from zip(prompts, texts, strict=True)


def _text_losses(run: Run, policies: Mapping[str, Trained[LanguageModel]]) -> dict[str, float]:
    """Returns each policy's loss on pretraining text, in nats a token."""
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
            "kl_to_init": None if found.kl is None else float(found.kl.mean()),
            "response_tokens": float(found.tokens.mean()),
            **judgement.models.get(model, {}),
        }
    return entries


def _report(run: Run, results: dict[str, Any]) -> None:
    files.write_json(run.workdir / "results.json", results)
    # A reward model may be another run's.
    finished = [stage for stage in folder.PAPER if run.is_finished(stage)]
    curves = {stage: metrics_file.read(run.directory(stage) / "metrics.jsonl") for stage in finished}
    path = report.write_report(run.workdir, results, curves)
    print(report.terminal_table(results))
    print(f"\n{path}")


def _write_answers(run: Run, prompts: Sequence[str], answered: Mapping[str, ModelAnswers]) -> None:
    """Writes one line a prompt, with every model's answer, for people to read."""
    path = run.workdir / "evaluate" / "answers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"prompt": prompt, **{model: found.texts[i] for model, found in answered.items()}}
        for i, prompt in enumerate(prompts)
    )
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
