"""Scores responses with a function of texts, on the host, between the rollout and the update of a PPO iteration."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from instructjax.algorithms.ppo import Iteration, PPOState
from instructjax.batch import Episodes, PromptBatch
from instructjax.data.layouts import Layout
from instructjax.errors import RewardFunctionError
from instructjax.records import Prompt
from instructjax.rollout import reward_function, samplers
from instructjax.rollout.reward_call import Call, Limits
from instructjax.rollout.reward_function import RewardFunction
from instructjax.runs import interruption, processes
from instructjax.runs.callbacks import Prepare
from instructjax.training import parallel
from instructjax.training.metrics import Mean, Metrics
from instructjax.training.state import Params

# Signals are noticed, and processes hear of each other, that often.
ROUND_SECONDS = 0.2

# score(place, records of the prompts, responses) -> float32[n]
Score = Callable[[str, Sequence[Prompt], Sequence[str]], np.ndarray]


def make_score(function: RewardFunction, section: ml_collections.ConfigDict) -> Score:
    """Builds `score(place, records, responses)`, which calls a reward function.

    The first process calls it, and all processes get its scores, or the same error. All of them must call `score` with
    the same arguments; `place` is what a message begins with, such as "ppo, iteration 3".

    Args:
      function: see `reward_function.load`.
      section: the section `ppo` of a recipe, or one with the same keys.

    Returns:
      A function that raises RewardFunctionError if the reward function fails or exceeds its limits, and Interrupted if
      the run is asked to stop in the meantime.
    """
    limits = Limits(section.reward_retries, section.reward_retry_seconds, section.reward_timeout_seconds)

    def score(place: str, records: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        call = None
        if processes.is_first():
            fields = [record.extra for record in records]
            call = Call(function, limits, [record.prompt for record in records], responses, fields)
        # In rounds, so that a signal to any process ends the wait.
        while not processes.agreed(int(call is not None and call.wait(ROUND_SECONDS))):
            interruption.stop_if_requested(place)
        found = json.loads(processes.gather(_outcome(call))[0])
        if "error" in found:
            raise RewardFunctionError(f"{place}: {found['error']}")
        return np.asarray(found["scores"], np.float32)

    return score


def _outcome(call: Call | None) -> str:
    if call is None:
        return ""
    try:
        return json.dumps({"scores": call.scores()})
    except RewardFunctionError as error:
        return json.dumps({"error": str(error)})


def try_out(config: ml_collections.ConfigDict, section: str, prompts: Sequence[Prompt]) -> None:
    """Calls the reward function of a section with two responses to a prompt of the data: the prompt's text, and "".

    Args:
      config: a whole recipe.
      section: `ppo`, or the name of a guest's section with the same keys; it has a reward function.
      prompts: of the training split; the first is used.

    Raises:
      ConfigError: the function cannot be imported.
      RewardFunctionError: it does not return two finite numbers.
    """
    key = f"{section}.reward_function"
    score = make_score(reward_function.load(config[section].reward_function, key), config[section])
    score(key, [prompts[0]] * 2, [prompts[0].prompt, ""])


def rollout_and_score(
    name: str,
    iterate: Iteration,
    score: Score,
    records: Sequence[Prompt],
    layout: Layout,
    config: ml_collections.ConfigDict,
    bases: tuple[Params, ...] = (),
) -> Prepare:
    """Builds what precedes `Iteration.learn` if a function gives the rewards; see `loop.Callbacks.prepare`.

    Args:
      name: of the stage, for errors.
      iterate: the iteration.
      score: see `make_score`.
      records: of the prompts. A batch has the indices in it as its `numbers`.
      layout: of the responses.
      config: the `parallel` section of a recipe.
      bases: see `Iteration.on`.

    Returns:
      `prepare(step, state, ((prompts, numbers), text), key) -> ((episodes, scores, text), metrics)`.
    """

    def sample(
        given: tuple[PPOState, tuple[Params, ...]], batch: tuple[PromptBatch, jax.Array], key: jax.Array
    ) -> tuple[tuple[Episodes, jax.Array], Metrics]:
        (state, bases), (prompts, numbers) = given, batch
        episodes, metrics = iterate.on(bases).sample(state, prompts, key)
        return (episodes, numbers), metrics

    compiled = parallel.compile_for_host(sample, config)

    def prepare(step: int, state: PPOState, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
        prompts, text = batch
        (episodes, numbers), metrics = compiled((state, bases), prompts, key)
        asked = [records[number] for number in np.repeat(numbers, iterate.samples_per_prompt).tolist()]
        scores = score(f"{name}, iteration {step}", asked, samplers.texts(layout, episodes))
        own = parallel.share_of_rows().rows(len(scores))
        episodes, own_scores = jax.tree.map(lambda x: x[own], (episodes, scores))
        return (episodes, own_scores, text), metrics | spread(scores)

    return prepare


def spread(scores: np.ndarray) -> Metrics:
    """Measures how much the scores [B] of a batch differ: without differences there is nothing to learn.

    Returns:
      Standard deviation, smallest, largest, and the share of the responses that have the most frequent score.
    """
    ((_, most_frequent),) = collections.Counter(scores.tolist()).most_common(1)
    values = {
        "reward_std": scores.std(dtype=np.float64),
        "reward_min": scores.min(),
        "reward_max": scores.max(),
        "reward_equal": most_frequent / len(scores),
    }
    return {name: Mean(np.float64(value), np.float64(1.0)) for name, value in values.items()}
