"""Answers of a policy to given prompts, as texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from instructjax import records
from instructjax.data.layouts import Layout
from instructjax.errors import InputError
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.stages.run import Run
from instructjax.stages.trained import Trained


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
      temperature: of the softmax; 0 takes the most likely token.
      batch_size: prompts that are answered at a time; changes no answer.
      top_k: only the k most likely tokens are drawn; 0 for all.
      top_p: only the most likely tokens are drawn that together have this probability; 1 for all.
      max_tokens: the most tokens of an answer; None for the layout's `max_response`.
      stop: texts before which an answer is cut.
      dtype: of the weights; see `TransformerConfig.decoding_dtype`.
    """

    temperature: float
    batch_size: int
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    dtype: str = ""


def answer(
    policy: Trained[LanguageModel], layout: Layout, prompts: Sequence[str], key: jax.Array, sampling: Sampling
) -> Iterator[tuple[str, str]]:
    """Yields (prompt, a sampled answer) for each prompt.

    Args:
      policy: the model that answers.
      layout: of its prompts and responses, as its checkpoint describes it.
      prompts: texts.
      key: of the samples.
      sampling: how to draw.

    Raises:
      InputError: `max_tokens` is more than the model's context has room for.
    """
    if sampling.max_tokens is not None:
        room = policy.model.config.max_length - layout.max_prompt
        if sampling.max_tokens > room:
            raise InputError(
                f"max_tokens: expected at most model.max_length - data.max_prompt = {room}, found {sampling.max_tokens}"
            )
        layout = dataclasses.replace(layout, max_response=sampling.max_tokens)
    sampler = samplers.make_sampler(
        LanguageModel(dataclasses.replace(policy.model.config, decoding_dtype=sampling.dtype)),
        layout,
        temperature=sampling.temperature,
        batch_size=min(len(prompts), sampling.batch_size),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    texts = (text for _, batch in sampler(policy.params, prompts, key) for text in batch)
    yield from zip(prompts, (cut(text, sampling.stop) for text in texts), strict=True)


def collect(
    run: Run, stages: Sequence[str], prompts: Sequence[Prompt], count: int, key: jax.Array, sampling: Sampling
) -> list[dict[str, Any]]:
    """Samples answers to each prompt, in turn by each policy, for labelers to judge.

    Args:
      run: the run whose policies answer.
      stages: names of their stages, which may be in progress. A name may repeat.
      prompts: N records.
      count: K, the number of answers to each prompt.
      key: of the samples.
      sampling: how to draw.

    Returns:
      N task records: the fields of the prompt, "responses" (K texts) and "models" (the K stages that they are from).
      Each stage has equally many answers, or one more; those of one stage are next to each other.

    Raises:
      CheckpointError: a stage has no checkpoint.
      InputError: a prompt is too long for a policy.
    """
    responses: list[list[str]] = [[] for _ in prompts]
    models = [stages[k % len(stages)] for k in range(count)]
    for number, stage in enumerate(dict.fromkeys(models)):
        policy, layout = run.open_policy(stage)
        for record in prompts:
            layout.encode_prompt(record.prompt, record.where)
        repeated = [record.prompt for record in prompts for _ in range(models.count(stage))]
        sampled = answer(policy, layout, repeated, jax.random.fold_in(key, number), sampling)
        for place, (_, text) in enumerate(sampled):
            responses[place // models.count(stage)].append(layout.truncate(text))
    grouped = sorted(models, key=models.index)  # the order of `responses`
    return [
        {**json.loads(records.to_json(record)), "responses": texts, "models": grouped}
        for record, texts in zip(prompts, responses, strict=True)
    ]


def cut(text: str, stop: Sequence[str]) -> str:
    """Returns the part of a text before the first of the stop strings in it."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
