"""Runs a language model on the prompts of a task: choices are scored, answers are sampled."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from instructjax import losses
from instructjax.batch import RankingBatch
from instructjax.data import bin_packing, layouts, pipeline
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.errors import DataError
from instructjax.evaluation.tasks.task import Example, Output, Task
from instructjax.models.partitioning import constrain_rows, even_rows, replicate
from instructjax.models.transformer import LanguageModel
from instructjax.models.unembedding import Read
from instructjax.rollout import samplers
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import objectives

STOP = "\n"  # ends an answer
_MULTIPLE = 8  # row lengths are multiples of this, because fused kernels need even lengths
_SHORTEST = 32  # tokens of the shortest prompts that are sampled together

Outputs = Iterator[list[tuple[int, Output]]]  # batches of (number of the example, output)


def tokenize_choices(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    examples: Sequence[Example],
    *,
    max_length: int,
    truncate: bool,
) -> list[TokenizedRanking]:
    """Tokenizes prompts with their choices. The prompt is what all choices share, so it is computed once.

    Prompt and choice are tokenized together, as one text. If the choices share no token, BOS is the
    prompt, or else EOS.

    Args:
      tokenizer: the model's.
      prompts: one per example.
      examples: with choices.
      max_length: of the model, in tokens.
      truncate: drops the beginning of a prompt that does not fit.

    Raises:
      DataError: a prompt does not fit next to each of its choices, or, with `truncate`, a choice alone does not.
    """
    found = []
    for prompt, example in zip(prompts, examples, strict=True):
        whole = [[*tokenizer.bos, *tokenizer.encode(prompt + choice)] for choice in example.choices]
        opening = [tokenizer.encode_opening(prompt)] if prompt else []
        shared = min(_shared(whole + opening), min(map(len, whole)) - 1)
        start, choices = whole[0][:shared] or [tokenizer.eos_id], [tokens[shared:] for tokens in whole]
        room = max_length - max(map(len, choices))
        _check_fit(len(start), room, truncate, example, max_length)
        found.append(TokenizedRanking(start[-room:], choices))
    return found


def score_choices(
    model: LanguageModel,
    params: Any,
    rankings: Sequence[TokenizedRanking],
    *,
    pad_id: int,
    batch_size: int,
    done: Collection[int] = (),
) -> Outputs:
    """Computes the log-probability of each choice; see `answer_sums`."""
    for batch in answer_sums(
        model, params, rankings, losses.log_probs, pad_id=pad_id, batch_size=batch_size, done=done
    ):
        yield [
            (i, Output(log_probs=tuple(sums.tolist()), tokens=tuple(map(len, rankings[i].responses))))
            for i, sums in batch
        ]


def answer_sums(
    model: LanguageModel,
    params: Any,
    rankings: Sequence[TokenizedRanking],
    read: Read,
    *,
    pad_id: int,
    batch_size: int,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, Any]]]:
    """Sums what `read` finds in the logits over the tokens of each answer, with one forward pass per prompt.

    Args:
      model: a language model.
      params: its weights.
      rankings: prompts with answers, such as those of `tokenize_choices`.
      read: such as `losses.log_probs`.
      pad_id: the id of the padding.
      batch_size: packed rows per forward pass, rounded up as `even_rows` does. A row is as long as the longest
        prompt with its answers.
      done: the numbers of prompts that are left out, as they were yielded before.

    Yields:
      Batches of (number of the prompt, the pytree that `read` returns, with float[K]).
    """
    lengths = [len(ranking) for ranking in rankings]
    length = -(-max(lengths) // _MULTIPLE) * _MULTIPLE
    packed = bin_packing.next_fit(lengths, length)
    make_row = functools.partial(
        layouts.ranking_row,
        length=length,
        max_prompts=max(map(len, packed)),
        max_responses=max(len(ranking.responses) for ranking in rankings),
        pad_id=pad_id,
    )
    pending = [row for row in packed if not set(row) <= set(done)]
    compute, batch_size = _compiled(model, read), even_rows(batch_size)
    for first in range(0, len(pending), batch_size):
        rows = pending[first : first + batch_size]
        made = [make_row([rankings[i] for i in row]) for row in rows]
        batch = pipeline.stack(made + [make_row([])] * (batch_size - len(rows)))
        sums = jax.tree.map(operator.itemgetter(batch.valid), jax.device_get(compute(params, batch)))
        numbers = [i for row in rows for i in row]
        counts = [len(rankings[i].responses) for i in numbers]
        yield [
            (i, jax.tree.map(operator.itemgetter(slice(end - count, end)), sums))
            for i, count, end in zip(numbers, counts, np.cumsum(counts), strict=True)
        ]


@functools.cache
def _compiled(model: LanguageModel, read: Read) -> Callable[[Any, RankingBatch], Any]:
    return jax.jit(lambda params, batch: replicate(objectives.answer_sums(model, params, constrain_rows(batch), read)))


def fit_prompts(
    tokenizer: Tokenizer,
    task: Task,
    prompts: Sequence[str],
    examples: Sequence[Example],
    *,
    max_length: int,
    truncate: bool,
) -> list[str]:
    """Returns the prompts of answers, each with room for `task.max_tokens` after it; see `tokenize_choices`.

    With `truncate`, characters are dropped from the beginning of a prompt until it fits.

    Raises:
      DataError: also if a prompt is empty.
    """
    room, found = max_length - task.max_tokens, []
    for prompt, example in zip(prompts, examples, strict=True):
        count = len(tokenizer.encode_opening(prompt))
        if not count:
            raise DataError(f"{example.where}: prompt: expected at least one token to continue, found none")
        _check_fit(count, room, truncate, example, max_length)
        found.append(drop_beginning(tokenizer, prompt, room))
    return found


def drop_beginning(tokenizer: Tokenizer, prompt: str, room: int) -> str:
    """Drops characters from the beginning of a prompt until it has at most `room` tokens."""
    while (count := len(tokenizer.encode_opening(prompt))) > room:
        prompt = prompt[count - room :]  # a token has at least about one character
    return prompt


def sample_answers(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    task: Task,
    prompts: Sequence[str],
    *,
    batch_size: int,
    done: Collection[int] = (),
) -> Outputs:
    """Samples an answer to each prompt at temperature 0, cut at the first line break; see `sample_texts`."""
    for batch in sample_texts(
        model, params, tokenizer, prompts, max_tokens=task.max_tokens, batch_size=batch_size, done=done
    ):
        yield [(i, Output(response=cut(text))) for i, text in batch]


def sample_texts(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, str]]]:
    """Samples a continuation of each prompt, up to EOS or `max_tokens`. Prompts of similar length are sampled together.

    Args:
      model: a language model.
      params: its weights.
      tokenizer: the model's.
      prompts: each of at least one token, and of at most max_length - max_tokens.
      max_tokens: of a continuation.
      batch_size: prompts that are sampled at a time.
      temperature: 0 takes the most likely tokens. Otherwise the seed is fixed.
      done: the numbers of prompts that are left out, as they were yielded before.

    Yields:
      Batches of (number of the prompt, text).
    """
    groups: dict[int, list[int]] = {}
    for i in sorted(set(range(len(prompts))) - set(done)):
        count = len(tokenizer.encode_opening(prompts[i]))
        bucket = min(max(_SHORTEST, 2 ** math.ceil(math.log2(count))), model.config.max_length - max_tokens)
        groups.setdefault(bucket, []).append(i)
    for max_prompt, numbers in sorted(groups.items()):
        layout = Layout(tokenizer, "", max_prompt, max_tokens)
        sampler = samplers.make_sampler(model, layout, temperature=temperature, batch_size=batch_size)
        position = 0
        for _, texts in sampler(params, [prompts[i] for i in numbers], jax.random.key(0)):
            batch = numbers[position : position + len(texts)]
            position += len(texts)
            yield list(zip(batch, texts, strict=True))


def cut(text: str) -> str:
    """Returns an answer up to its first line break, without spaces around it."""
    return text.partition(STOP)[0].strip()


def _shared(texts: Sequence[Sequence[int]]) -> int:
    """Returns the number of tokens at the beginning that all texts share."""
    count = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def _check_fit(count: int, room: int, truncate: bool, example: Example, max_length: int) -> None:
    if room < 1:
        raise DataError(
            f"{example.where}: expected a continuation of fewer than {max_length} tokens (model.max_length), "
            f"found {max_length - room}"
        )
    if count > room and not truncate:
        raise DataError(
            f"{example.where}: prompt: expected at most {room} of the model's {max_length} tokens (model.max_length), "
            f"found {count}; --truncate drops the beginning of such prompts"
        )
