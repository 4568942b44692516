"""Hypothesis strategies for the inputs of losses: ragged masks, rankings with ties, episodes, packed rows.

Every strategy draws arrays of one shape, so that a loss is compiled once for all examples.
Letters in shapes are those of `typing.py`. Token ids are below `vocabulary`. Padding holds ids
too, so that a loss that reads padding is caught.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from instructjax.batch import Episodes, LMBatch, RankingBatch
from instructjax.data.layouts import TokenizedRanking, ranking_row

T = TypeVar("T")
Strategy = st.SearchStrategy
Arrays = tuple[np.ndarray, ...]

SHARES = (0.0, 0.5, 1.0)  # weights of tokens
TIED_SCORES = 3  # scores are integers below this, so that most rankings have a tie


# Arrays.


def floats(*shape: int, bound: float = 4.0) -> Strategy[np.ndarray]:
    """Draws float64 arrays of numbers that float32 can hold, from -bound to bound."""
    return hnp.arrays(np.float64, shape, elements=st.floats(-bound, bound, width=32))


def integers(low: int, high: int, *shape: int) -> Strategy[np.ndarray]:
    """Draws int32 arrays of numbers from low to high, inclusive."""
    return hnp.arrays(np.int32, shape, elements=st.integers(low, high))


def masks(rows: int, columns: int, shortest: int = 0) -> Strategy[np.ndarray]:
    """Draws ragged float32 masks [rows, columns]: each row is a run of ones, then zeros.

    Args:
      rows: number of rows.
      columns: the longest run of ones.
      shortest: the shortest run; if 0, some rows are empty.
    """
    lengths = st.lists(st.integers(shortest, columns), min_size=rows, max_size=rows)
    return lengths.map(lambda drawn: (np.arange(columns) < np.array(drawn)[:, None]).astype(np.float32))


def masked_arrays(count: int, rows: int, columns: int, bound: float = 4.0) -> Strategy[Arrays]:
    """Draws the arguments of a loss over tokens: `count` arrays of floats and a ragged mask, [rows, columns] each."""
    return st.tuples(*(floats(rows, columns, bound=bound) for _ in range(count)), masks(rows, columns))


def rankings(prompts: int, answers: int, bound: float = 4.0) -> Strategy[Arrays]:
    """Draws (rewards, scores, valid), [prompts, answers] each. Many scores tie, and any answer may be missing."""
    shape = prompts, answers
    return st.tuples(floats(*shape, bound=bound), integers(0, TIED_SCORES, *shape), hnp.arrays(np.bool_, shape))


# Batches.


def batches_of(build: Callable[[st.DrawFn, np.random.Generator], T], rows: int) -> Strategy[T]:
    """Draws rows and stacks them into a batch.

    Args:
      build: makes a row, a pytree of arrays with the same shapes each time. It draws the structure
        of the row from Hypothesis and the rest from the generator.
      rows: number of rows.
    """

    @st.composite
    def batch(draw: st.DrawFn) -> Any:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(build(draw, rng) for _ in range(rows)))

    return batch()


def packed_texts(rows: int, length: int, texts: int = 3, vocabulary: int = 16) -> Strategy[LMBatch]:
    """Draws rows of several texts each, followed by padding; some rows are empty.

    Args:
      rows: B.
      length: T.
      texts: the most texts in a row.
      vocabulary: token ids are below this.
    """

    def build(draw: st.DrawFn, rng: np.random.Generator) -> LMBatch:
        ends = sorted(draw(st.sets(st.integers(1, length), max_size=texts)))
        segments, positions = np.zeros((2, length), np.int32)
        weights = np.array(draw(st.lists(st.sampled_from(SHARES), min_size=length, max_size=length)), np.float32)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False), start=1):
            segments[start:end], positions[start:end] = number, np.arange(end - start)
        weights[positions == 0] = 0  # padding, and first tokens, which are not predicted
        return LMBatch(rng.integers(0, vocabulary, length, np.int32), segments, positions, weights)

    return batches_of(build, rows)


@st.composite
def tokenized_rankings(draw: st.DrawFn, answers: int, most: int, vocabulary: int = 16) -> TokenizedRanking:
    """Draws a prompt with 2 to `answers` answers, each of 1 to `most` tokens; many scores tie."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prompt, *responses = (
        rng.integers(0, vocabulary, size).tolist()
        for size in draw(st.lists(st.integers(1, most), min_size=3, max_size=answers + 1))
    )
    scores = draw(st.lists(st.integers(0, TIED_SCORES), min_size=len(responses), max_size=len(responses)))
    return TokenizedRanking(prompt, responses, [float(score) for score in scores])


def packed_rankings(
    rows: int, length: int, prompts: int = 2, answers: int = 3, vocabulary: int = 16
) -> Strategy[RankingBatch]:
    """Draws rows of up to `prompts` rankings each, as `data.layouts.ranking_row` lays them out.

    Args:
      rows: B.
      length: T; at least prompts · (answers + 1).
      prompts: S.
      answers: K, at least 2.
      vocabulary: token ids are below this.
    """
    most = length // (prompts * (answers + 1))
    ranked = tokenized_rankings(answers=answers, most=most, vocabulary=vocabulary)

    def build(draw: st.DrawFn, rng: np.random.Generator) -> RankingBatch:
        row = ranking_row(
            draw(st.lists(ranked, max_size=prompts)),
            length=length,
            max_prompts=prompts,
            max_responses=answers,
            pad_id=0,
        )
        padding = rng.integers(0, vocabulary, length, np.int32)
        return row.replace(tokens=np.where(row.segments > 0, row.tokens, padding))

    return batches_of(build, rows)


def episodes(
    rows: int, prompt: int, response: int, vocabulary: int = 16, pad_id: int = 0, eos_id: int = 1
) -> Strategy[Episodes]:
    """Draws prompts with sampled responses; a token may be `pad_id`, and a prompt may hold `eos_id`.

    A response that is shorter than `response` ends with `eos_id`. A full one may end with any token.

    Args:
      rows: B.
      prompt: P; each prompt has 1 to P tokens, padded on the left.
      response: R; each response has 1 to R tokens, padded on the right.
      vocabulary: token ids are below this.
      pad_id: the id of padding.
      eos_id: ends a response and occurs nowhere else in it.
    """

    def build(draw: st.DrawFn, rng: np.random.Generator) -> Episodes:
        asked, answered = draw(st.integers(1, prompt)), draw(st.integers(1, response))
        ended = answered < response or draw(st.booleans())
        ids = rng.integers(0, vocabulary, prompt + response, np.int32)
        segments, positions = np.zeros((2, prompt + response), np.int32)
        inside = slice(prompt - asked, prompt + answered)
        segments[inside], positions[inside] = 1, np.arange(asked + answered)
        sampled = ids[prompt:]
        sampled[sampled == eos_id] = pad_id
        if ended:
            sampled[answered - 1] = eos_id
        mask = segments[prompt:].astype(np.float32)
        log_probs = rng.uniform(-4, 0, response).astype(np.float32) * mask
        return Episodes(np.where(segments > 0, ids, pad_id), segments, positions, mask, log_probs, np.int32(0))

    return batches_of(build, rows).map(lambda batch: batch.replace(group=np.arange(rows, dtype=np.int32)))
