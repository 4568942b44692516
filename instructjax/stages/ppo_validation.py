"""Measures PPO's averaged policy on validation prompts while it trains, and shows some of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from instructjax.algorithms.ppo import Frozen, PPOState
from instructjax.evaluation.intervals import standard_error
from instructjax.evaluation.language_models import held_out_loss
from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import processes, samples_file
from instructjax.stages.scoring import Score
from instructjax.stages.stage import Stage


def make_measure(
    stage: Stage, model: LanguageModel, scalar: ScalarModel, score: Score | None, frozen: Frozen
) -> Callable[[PPOState], dict[str, float]]:
    """Builds `measure(state)`: reward, KL, loss on text, and what the source of the records knows.

    It answers the first `validation_prompts` of the section, and writes the first `shown_answers` of them with their
    rewards to WORKDIR/STAGE/samples.jsonl.

    Args:
      stage: see `ppo.train`.
      model: the policy's.
      scalar: the reward model.
      score: the section's reward function, which gives the rewards; None for the reward model.
      frozen: weights of reference and reward model.
    """
    run, section, evaluate = stage.run, stage.section, stage.config.evaluate
    temperature = evaluate.temperature
    sampler = samplers.make_sampler(model, run.layout, temperature=temperature, batch_size=evaluate.batch_size)
    model_score, divergence = samplers.make_scorer(scalar), samplers.make_divergence(model, temperature)
    text_loss, text = held_out_loss(model), run.validation_text()
    records = run.records(Prompt, "validation")[: section.validation_prompts]
    prompts = [record.prompt for record in records]
    key = jax.random.key(stage.config.seed)

    def measure(state: PPOState) -> dict[str, float]:
        params, step = state.policy.ema, int(state.step)
        texts: list[str] = []
        scores: list[np.ndarray] = []
        kl: list[np.ndarray] = []
        for episodes, batch in sampler(params, prompts, key):
            texts += batch
            if score is None:
                scores.append(np.asarray(model_score(frozen.reward, episodes))[: len(batch)])
            if divergence is not None:
                kl.append(np.asarray(divergence(params, frozen.reference, episodes))[: len(batch)])
        if score is not None:
            scores.append(score(f"{stage.name}, validation after iteration {step}", records, texts))
        rewards, divergences = np.concatenate(scores), np.concatenate(kl) if kl else None
        shown = _samples(prompts[: section.shown_answers], texts, rewards, divergences)
        if shown:
            processes.first(lambda: samples_file.write(stage.directory, step, shown))
        return {
            "validation_reward": float(np.mean(rewards)),
            **_kl(divergences),
            **({"text_loss": text_loss(params, text)} if text else {}),
            **run.source.measure(prompts, texts),
        }

    return measure


def _kl(divergences: np.ndarray | None) -> dict[str, float]:
    """Returns the KL with its standard error; nothing at temperature 0, where it is not defined."""
    if divergences is None:
        return {}
    found = {"validation_kl": float(np.mean(divergences))}
    error = standard_error(divergences)
    return found if error is None else {**found, "validation_kl_standard_error": error}


def _samples(
    prompts: Sequence[str], texts: Sequence[str], rewards: np.ndarray, divergences: np.ndarray | None
) -> list[dict[str, Any]]:
    """Returns the answers to some prompts, the first ones, as lines of samples.jsonl."""
    return [
        {
            "prompt": prompt,
            "response": texts[i],
            "reward": round(float(rewards[i]), 6),
            "kl": None if divergences is None else round(float(divergences[i]), 6),
        }
        for i, prompt in enumerate(prompts)
    ]
