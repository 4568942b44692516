"""Gives rewards to answers outside of PPO: by the reward model of a run, or by its reward function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from instructjax.batch import Episodes
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.evaluation import reward_models
from instructjax.models.transformer import ScalarModel
from instructjax.records import Prompt, Ranking
from instructjax.rollout import reward_function, samplers
from instructjax.runs import checkpoint, interruption
from instructjax.stages import ranking_report, scoring
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Functions that give rewards to answers. K is the number of answers to a prompt.

    Attributes:
      of_episodes: `(prompts, episodes, texts) -> float64[n]`, of the first n sampled episodes, whose texts are given.
      of_texts: `(prompts, answered) -> float64[n, K]`, of K texts that answer each prompt.
      of_rankings: `(rankings) -> n arrays [K]`.
    """

    of_episodes: Callable[[Sequence[Prompt], Episodes, Sequence[str]], np.ndarray]
    of_texts: Callable[[Sequence[Prompt], Sequence[Sequence[str]]], np.ndarray]
    of_rankings: Callable[[Sequence[Ranking]], list[np.ndarray]]


def identify(run: Run) -> str:
    """Returns the fingerprint of the reward model, or the reward function's name and the digest of its file."""
    if name := run.config.ppo.reward_function:
        return f"{name} {reward_function.load(name).digest()}".strip()
    return checkpoint.fingerprint(run.checkpoints("reward", run.config.ppo.reward_from))


def load(run: Run, place: str) -> Rewards:
    """Loads what gives PPO's rewards in this run: its reward model, or its reward function.

    Args:
      run: its section `ppo` names one of them.
      place: what errors of the function begin with, such as "evaluate".

    Raises:
      CheckpointError: there is no reward model.
    """
    section = run.config.ppo
    if not section.reward_function:
        return of_model(run, run.load_reward_model(section.reward_from))
    return of_function(place, scoring.make_score(reward_function.load(section.reward_function), section))


def of_model(run: Run, reward: Trained[ScalarModel]) -> Rewards:
    """Returns the rewards of a reward model. A text that is longer than a sample is cut; see `Layout.truncate`."""
    scorer, layout = samplers.make_scorer(reward.model), run.layout

    def of_episodes(prompts: Sequence[Prompt], episodes: Episodes, texts: Sequence[str]) -> np.ndarray:
        del prompts
        return np.asarray(scorer(reward.params, episodes), np.float64)[: len(texts)]

    def of_texts(prompts: Sequence[Prompt], answered: Sequence[Sequence[str]]) -> np.ndarray:
        return np.stack(score_texts(reward, layout, prompts, answered, run.config.evaluate.batch_size))

    return Rewards(of_episodes, of_texts, lambda rankings: ranking_report.ranking_rewards(run, reward, rankings))


def score_texts(
    reward: Trained[ScalarModel],
    layout: Layout,
    prompts: Sequence[Prompt],
    answered: Sequence[Sequence[str]],
    batch_size: int,
) -> list[np.ndarray]:
    """Scores texts as answers to prompts, by a reward model. A text that is longer than a sample is cut.

    Args:
      reward: the reward model.
      layout: of its prompts and responses.
      prompts: N records.
      answered: K texts that answer each.
      batch_size: the maximum number of packed rows per forward pass.

    Returns:
      N arrays float64[K].

    Raises:
      DataError: a prompt is too long.
    """
    rows = [
        TokenizedRanking(
            layout.encode_prompt(record.prompt, record.where),
            [layout.encode_response(layout.truncate(text)) for text in texts],
        )
        for record, texts in zip(prompts, answered, strict=True)
    ]
    return reward_models.rewards(
        reward.model,
        reward.params,
        rows,
        pad_id=layout.tokenizer.pad_id,
        batch_size=batch_size,
        over=functools.partial(interruption.stoppable, place="rewards"),
    )


def of_function(place: str, score: scoring.Score) -> Rewards:
    """Returns the rewards of a function of texts."""

    def of_lists(prompts: Sequence[Prompt], answered: Sequence[Sequence[str]]) -> list[np.ndarray]:
        counts = [len(texts) for texts in answered]
        asked = [record for record, count in zip(prompts, counts, strict=True) for _ in range(count)]
        scores = score(place, asked, [text for texts in answered for text in texts]).astype(np.float64)
        return np.split(scores, np.cumsum(counts)[:-1])

    def of_rankings(rankings: Sequence[Ranking]) -> list[np.ndarray]:
        prompts = [Prompt(prompt=ranking.prompt, extra=ranking.extra) for ranking in rankings]
        return of_lists(prompts, [ranking.responses for ranking in rankings])

    return Rewards(
        of_episodes=lambda prompts, _, texts: score(place, prompts, texts).astype(np.float64),
        of_texts=lambda prompts, answered: np.stack(of_lists(prompts, answered)),
        of_rankings=of_rankings,
    )
