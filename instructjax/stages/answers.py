"""Answers of a policy to given prompts, as texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from instructjax.data.layouts import Layout
from instructjax.errors import InputError
from instructjax.models.transformer import LanguageModel
from instructjax.rollout import samplers
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
    """

    temperature: float
    batch_size: int
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


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
        policy.model,
        layout,
        temperature=sampling.temperature,
        batch_size=min(len(prompts), sampling.batch_size),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    texts = (text for _, batch in sampler(policy.params, prompts, key) for text in batch)
    yield from zip(prompts, (cut(text, sampling.stop) for text in texts), strict=True)


def cut(text: str, stop: Sequence[str]) -> str:
    """Returns the part of a text before the first of the stop strings in it."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
