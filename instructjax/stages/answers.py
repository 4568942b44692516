"""Answers of a policy to given prompts, as texts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax

from instructjax import records
from instructjax.data.layouts import Layout
from instructjax.errors import InputError
from instructjax.models.transformer import LanguageModel
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import interruption, progress
from instructjax.stages.run import Run, Step
from instructjax.stages.trained import Trained

Policy: TypeAlias = tuple[Trained[LanguageModel], Layout]
MakeKeys: TypeAlias = Callable[[Sequence[str]], jax.Array]  # from N prompts, one key for each


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
      refill: with continuous batching, a device is refilled once this many of its rows are idle; 0 answers one batch
        after the other. Changes no answer.
      dtype: of the weights; see `TransformerConfig.decoding_dtype`.
    """

    temperature: float
    batch_size: int
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    refill: int = 0
    dtype: str = ""


def answer(
    policy: Trained[LanguageModel], layout: Layout, prompts: Sequence[str], key: jax.Array, sampling: Sampling
) -> Iterator[tuple[str, str]]:
    """Yields (prompt, a sampled answer) for each prompt.

    Args:
      policy: the model that answers.
      layout: of its prompts and responses, as its checkpoint describes it.
      prompts: texts.
      key: of the samples, or one per prompt; see `samplers.make_sampler`.
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
    model = policy.model
    if sampling.dtype:
        model = LanguageModel(dataclasses.replace(model.config, decoding_dtype=sampling.dtype))
    sampler = samplers.make_sampler(
        model,
        layout,
        temperature=sampling.temperature,
        batch_size=min(len(prompts), sampling.batch_size),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        refill=sampling.refill,
    )
    batches = interruption.stoppable(sampler(policy.params, prompts, key), "answers")
    texts = (text for _, batch in batches for text in batch)
    yield from zip(prompts, (cut(text, sampling.stop) for text in texts), strict=True)


def answer_in_turn(
    policies: Sequence[Callable[[], Policy]],
    prompts: Sequence[Prompt],
    counts: Sequence[Sequence[int]],
    make_keys: Sequence[MakeKeys],
    sampling: Sampling,
    bar: progress.Bar,
) -> Iterator[list[list[str]]]:
    """Lets one policy after the other answer all prompts. Only one policy is in memory.

    Args:
      policies: functions that load them.
      prompts: N records.
      counts: for each policy, the number of its answers to each prompt, [N].
      make_keys: for each policy, a function that makes one key per answer from the prompts, each of which is repeated
        as often as it is answered: `samplers.prompt_keys` of a key, or `sampling.row_keys`.
      sampling: how to draw.
      bar: counts the answers.

    Yields:
      For each policy, when it has been freed: its answers to each prompt, N lists of texts.
    """
    for load, shares, keys in zip(policies, counts, make_keys, strict=True):
        yield _answers(load, prompts, shares, keys, sampling, bar)


def _answers(
    load: Callable[[], Policy],
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    make_keys: MakeKeys,
    sampling: Sampling,
    bar: progress.Bar,
) -> list[list[str]]:
    """Returns the answers of a policy, which is freed at the end; see `answer_in_turn`."""
    repeated = [record.prompt for record, count in zip(prompts, counts, strict=True) for _ in range(count)]
    if not repeated:
        return [[] for _ in prompts]
    policy, layout = load()
    drawn = bar.over(answer(policy, layout, repeated, make_keys(repeated), sampling), size=lambda _: 1)
    texts = iter([text for _, text in drawn])
    return [list(itertools.islice(texts, count)) for count in counts]


def check_prompts(run: Run, stages: Sequence[str], prompts: Sequence[Prompt], step: Step = None) -> list[Layout]:
    """Returns the layouts of policies, without reading their weights, and rejects prompts that are too long for one.

    Args:
      run: the run whose policies they are.
      stages: names of their stages; see `Run.open_policy`, also for `step`.
      prompts: records.
      step: of the checkpoints.

    Raises:
      CheckpointError: a stage has no such checkpoint.
      InputError: a prompt is too long for a policy.
    """
    layouts = [run.policy_layout(stage, step) for stage in stages]
    for layout, record in itertools.product(layouts, prompts):
        layout.encode_prompt(record.prompt, record.where)
    return layouts


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
    models = [stages[k % len(stages)] for k in range(count)]
    names = list(dict.fromkeys(models))
    layouts = check_prompts(run, names, prompts)
    responses: list[list[str]] = [[] for _ in prompts]
    with progress.Bar("answers", len(prompts) * count, "answer") as bar:
        answered = answer_in_turn(
            [functools.partial(run.open_policy, name) for name in names],
            prompts,
            [[models.count(name)] * len(prompts) for name in names],
            [functools.partial(samplers.prompt_keys, jax.random.fold_in(key, n)) for n in range(len(names))],
            sampling,
            bar,
        )
        for layout, of_policy in zip(layouts, answered, strict=True):
            for texts, found in zip(responses, of_policy, strict=True):
                texts += map(layout.truncate, found)
    grouped = sorted(models, key=models.index)  # the order of `responses`
    return [
        {**json.loads(records.to_json(record)), "responses": texts, "models": grouped}
        for record, texts in zip(prompts, responses, strict=True)
    ]


def cut(text: str, stop: Sequence[str]) -> str:
    """Returns the part of a text before the first of the stop strings in it."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
