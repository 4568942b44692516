"""The evaluation (section 4.1): every model answers the prompts of held-out users, and is judged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from instructjax import files, records
from instructjax.data.layouts import Layout
from instructjax.data.rankings import tokenize_rankings
from instructjax.evaluation import agreement, reward_models, simulated
from instructjax.evaluation.intervals import clustered_mean
from instructjax.models.transformer import LanguageModel
from instructjax.records import Demonstration, Prompt, Ranking
from instructjax.reporting import figures, report
from instructjax.rollout import samplers
from instructjax.runs import metrics_file, processes
from instructjax.sources import e2e, facts
from instructjax.stages import comparisons, few_shot, language_model, prepare, sft, workspace
from instructjax.stages.workspace import Trained
from instructjax.training import parallel


@dataclasses.dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to the test prompts.

    Attributes:
      texts: one answer to each prompt.
      rewards: float[n], the reward model's.
      tokens: float[n], the length of each answer, EOS included.
      kl: float[n], the log-ratio of each answer to PPO's initial policy, in nats; None
        where the model did not see the plain prompt.
    """

    texts: list[str]
    rewards: np.ndarray
    tokens: np.ndarray
    kl: np.ndarray | None


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike, name: str) -> dict[str, Any]:
    """Judges GPT, prompted GPT, SFT, PPO, PPO-ptx and the recipe's guests, and writes what came out.

    Writes WORKDIR/evaluate/answers.jsonl, WORKDIR/results.json and WORKDIR/report.md with
    its figures, and prints a table.

    Args:
      config: a whole recipe.
      workdir: a run with all stages finished.
      name: the recipe as it was named, for the report.

    Returns:
      The results; the format is in docs/results.md.
    """
    with parallel.on_mesh(config.parallel):
        return _run(config, epath.Path(workdir), name)


def _run(config: ml_collections.ConfigDict, workdir: epath.Path, name: str) -> dict[str, Any]:
    began = time.monotonic()
    layout = prepare.run(config, workdir)
    selection = sft.selection(workdir)
    shape = workspace.model_config(config, layout.tokenizer)
    start = workspace.checkpoints_of(config.ppo.reward_from, workdir, "reward")
    reward = workspace.load_reward_model(start, workspace.reward_config(config, layout.tokenizer), layout.tokenizer)
    start = workspace.checkpoints_of(config.ppo.init_from, workdir, "ppo_init")
    reference = workspace.load_language_model(start, shape, layout.tokenizer)
    policies = {
        "gpt": workspace.load_policy(workdir, "pretrain", shape, layout.tokenizer),
        "sft": workspace.load_policy(workdir, "sft", shape, layout.tokenizer),
        "ppo": workspace.load_policy(workdir, "ppo", shape, layout.tokenizer),
        "ppo_ptx": workspace.load_policy(workdir, "ppo_ptx", shape, layout.tokenizer),
    }
    guests = {stage: workspace.load_policy(workdir, stage, shape, layout.tokenizer) for stage in config.evaluate.guests}
    test = prepare.load(config, workdir, Prompt, "test")
    prompts = [record.prompt for record in test[: config.evaluate.prompts]]
    prefix = few_shot.choose_prefix(config, workdir, layout, policies["gpt"], reward)
    answered = {
        model: answer_all(config, layout, policy, reward, reference, prompts, seed=index)
        for index, (model, policy) in enumerate(policies.items())
    }
    if prefix is not None:
        texts = few_shot.answer(config, layout, policies["gpt"], prefix, prompts, jax.random.key(config.seed))
        answered["gpt_prompted"] = ModelAnswers(
            texts,
            few_shot.score_texts(config, layout, reward, prompts, [[text] for text in texts])[:, 0],
            np.array([len(layout.tokenizer.encode(text)) + 1 for text in texts], np.float64),
            None,
        )
    # Another sample of the baseline, so that it is compared with itself as the others are.
    baseline = answer_all(config, layout, policies["sft"], reward, reference, prompts, seed=len(policies))
    # After the others, so that these have the same samples with guests and without.
    for index, (guest, policy) in enumerate(guests.items(), start=len(policies) + 1):
        answered[guest] = answer_all(config, layout, policy, reward, reference, prompts, seed=index)
    processes.first(lambda: _write_answers(workdir / "evaluate" / "answers.jsonl", prompts, answered))

    text = prepare.validation_text(config, workdir, layout)
    text_loss = language_model.mean_loss(LanguageModel(shape))
    losses = {model: text_loss(policy.params, text) for model, policy in (policies | guests).items()}
    losses["gpt_prompted"] = losses["gpt"]
    params = sum(leaf.size for leaf in jax.tree.leaves(policies["gpt"].params))
    models: dict[str, Any] = {model: None for model in figures.MODELS}  # gpt_prompted may have no answers
    for model in answered:
        models[model] = {
            "params": params,
            "true_quality": None,
            "win_rate_vs_sft": None,
            "likert": None,
            "metadata": None,
            "pretrain_loss": losses[model],
            "reward": clustered_mean(answered[model].rewards, prompts).to_dict(),
            "kl_to_init": None if answered[model].kl is None else float(answered[model].kl.mean()),
            "response_tokens": float(answered[model].tokens.mean()),
        }
    results: dict[str, Any] = {
        "seed": config.seed,
        "config": name,
        "wall_seconds": None,
        "peak_rss_gib": None,
        "models": models,
        "reward_model": None,
        "few_shot_prefix": prefix,
        "sft_selection": selection,
    }
    if "sandbox" in config:
        _judge_sandbox(config, workdir, layout, reward, prompts, answered, baseline, results)
    elif "e2e" in config:
        _judge_e2e(config, workdir, layout, reward, prompts, answered, results)
    results["alignment_tax_recovered"] = report.alignment_tax(results)
    results["wall_seconds"], results["peak_rss_gib"] = workspace.cost(workdir, evaluate=time.monotonic() - began)
    processes.first(lambda: _report(workdir, results))
    return results


def _report(workdir: epath.Path, results: dict[str, Any]) -> None:
    files.write_json(workdir / "results.json", results)
    made = [
        stage for stage in workspace.STAGES if workspace.is_finished(workdir, stage)
    ]  # a reward model may be another run's
    curves = {stage: metrics_file.read(workdir / stage / "metrics.jsonl") for stage in made}
    path = report.write_report(workdir, results, curves)
    print(report.terminal_table(results))
    print(f"\n{path}")


def answer_all(
    config: ml_collections.ConfigDict,
    layout: Layout,
    policy: Trained,
    reward: Trained,
    reference: Trained,
    prompts: Sequence[str],
    seed: int,
) -> ModelAnswers:
    """Samples an answer to each prompt, with its reward and its log-ratio to the reference."""
    sampler = samplers.make_sampler(
        policy.model, layout, temperature=config.evaluate.temperature, batch_size=config.evaluate.batch_size
    )
    scorer, divergence = samplers.make_scorer(reward.model), samplers.make_divergence(policy.model)
    texts: list[str] = []
    columns: list[list[np.ndarray]] = []
    for episodes, batch in sampler(policy.params, prompts, jax.random.fold_in(jax.random.key(config.seed), seed)):
        texts += batch
        columns.append(
            [
                np.asarray(column, np.float64)[: len(batch)]
                for column in (
                    scorer(reward.params, episodes),
                    episodes.response_mask.sum(axis=1),
                    divergence(policy.params, reference.params, episodes),
                )
            ]
        )
    return ModelAnswers(texts, *(np.concatenate(column) for column in zip(*columns, strict=True)))


def answer(
    config: ml_collections.ConfigDict, layout: Layout, policy: Trained, prompts: Sequence[str], key: jax.Array
) -> Iterator[tuple[str, str]]:
    """Yields (prompt, a sampled answer) for each prompt."""
    sampler = samplers.make_sampler(
        policy.model,
        layout,
        temperature=config.evaluate.temperature,
        batch_size=min(len(prompts), config.evaluate.batch_size),
    )
    texts = (text for _, batch in sampler(policy.params, prompts, key) for text in batch)
    yield from zip(prompts, texts, strict=True)


def ranking_rewards(
    config: ml_collections.ConfigDict, layout: Layout, reward: Trained, rankings: Sequence[Ranking]
) -> list[np.ndarray]:
    """The rewards [K] of the answers of each ranking."""
    return reward_models.rewards(reward, tokenize_rankings(rankings, layout), config.reward.batch_size)


def _judge_sandbox(config, workdir, layout, reward, prompts, answered, baseline, results) -> None:
    """Adds what the simulated labelers and the true world say."""
    rng = np.random.default_rng([config.seed, 4])
    training, heldout = prepare.simulated_labelers(config)
    for model in (model for model in results["models"] if model in answered):
        entry, texts = results["models"][model], answered[model].texts
        entry["true_quality"] = simulated.true_quality(prompts, texts).to_dict()
        entry["win_rate_vs_sft"] = {
            name: simulated.preference(prompts, texts, baseline.texts, group, config.evaluate.judgements, rng).to_dict()
            for name, group in (("training", training), ("heldout", heldout))
        }
        entry.update(simulated.ratings(prompts, texts, heldout, rng))
    rankings = {
        "training": list(prepare.load(config, workdir, Ranking, "validation")),
        "heldout": records.read(workdir / "data" / comparisons.HELDOUT, Ranking),
    }
    rewards = {name: ranking_rewards(config, layout, reward, group) for name, group in rankings.items()}
    accuracy = {name: agreement.reward_accuracy(group, rewards[name]) for name, group in rankings.items()}
    agreed = {name: agreement.pairwise_agreement(group) for name, group in rankings.items()}
    results["reward_model"] = {
        "accuracy": {f"{name}_labelers": estimate.mean for name, estimate in accuracy.items()},
        "labeler_agreement": {name: estimate.mean for name, estimate in agreed.items()},
        "pairs": accuracy["training"].n,
        "calibration": {name: agreement.calibration(group, rewards[name]) for name, group in rankings.items()},
        "intervals": {
            "accuracy": {name: estimate.to_dict() for name, estimate in accuracy.items()},
            "labeler_agreement": {name: estimate.to_dict() for name, estimate in agreed.items()},
        },
    }


def _judge_e2e(config, workdir, layout, reward, prompts, answered, results) -> None:
    """Adds what can be measured on human data: accuracy on held-out raters, facts stated, rewards."""
    single = list(prepare.load(config, workdir, Ranking, "test"))
    train = list(prepare.load(config, workdir, Ranking, "train"))
    references = list(prepare.load(config, workdir, Demonstration, "test"))
    results["human"] = {
        **agreement.against_raters(
            train, single, e2e.average(single), lambda group: ranking_rewards(config, layout, reward, group)
        ),
        "facts_stated": {
            **{model: facts.share_of_facts(prompts, found.texts).to_dict() for model, found in answered.items()},
            "references": facts.share_of_facts(
                [record.prompt for record in references], [record.response for record in references]
            ).to_dict(),
        },
    }


def _write_answers(path: epath.Path, prompts: Sequence[str], answered: dict[str, ModelAnswers]) -> None:
    """One line a prompt, with every model's answer, to be read by people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"prompt": prompt, **{model: found.texts[i] for model, found in answered.items()}}
        for i, prompt in enumerate(prompts)
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
