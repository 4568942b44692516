"""From rankings to batches: each prompt once with all of its answers, several prompts in a row.

A row is as long as the longest ranking, so no ranking is cut. To know the lengths, every ranking is
tokenised once before the first batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain

from instructjax.batch import RankingBatch
from instructjax.data import bin_packing, layouts, packed_batches, pipeline
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.data.pipeline import Batches, Rows, Share
from instructjax.records import Ranking

_MULTIPLE = 8  # a row's length is one of this: fused kernels want even lengths


@dataclasses.dataclass(frozen=True)
class _RowSize:
    """What a row must have room for: `length` tokens (T), and rankings with up to K `responses` each."""

    length: int
    responses: int


def tokenize_rankings(records: Sequence[Ranking], layout: Layout) -> Rows:
    """The `TokenizedRanking` of each ranking, made when they are asked for."""
    return pipeline.indices(records).map(lambda index: layouts.tokenize_ranking(records[index], layout))


def ranking_rows(rankings: Sequence[TokenizedRanking], pad_id: int) -> Rows:
    """Rows of a `RankingBatch` for evaluation, packed in the order of the rankings.

    So the valid answers of one row after the other are the answers of one ranking after the other.

    Args:
      rankings: in memory, or from `tokens`.
      pad_id: fills rows up.
    """
    lengths, size = _measure(rankings)
    fit = bin_packing.next_fit(lengths, size.length)
    prompts = max(map(len, fit))
    return grain.MapDataset.range(len(fit)).map(
        lambda row: _make_row([rankings[i] for i in fit[row]], size, prompts, pad_id)
    )


def ranking_batches(
    rankings: Rows,
    pad_id: int,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    multiple: int = 1,
    share: Share = (0, 1),
) -> Batches:
    """Batches of a `RankingBatch` for training; see `packed_batches.batches`.

    Args:
      rankings: from `tokens`.
      pad_id: fills rows up.
      batch_size: rankings, not rows, of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      steps: batches that are going to be read; the number of shapes is chosen for them.
      multiple: of which the number of rows of a global batch is one, so that devices and microbatches can share them.
      share: (i, n), where this process reads part i of n of the rows.
    """
    lengths, size = _measure(rankings)

    prompts = size.length // min(lengths)

    def make(indices: Sequence[int]) -> RankingBatch:
        return _make_row([rankings[i] for i in indices], size, prompts, pad_id)

    return packed_batches.batches(
        lengths,
        size.length,
        make,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        multiple=multiple,
        share=share,
    )


def _measure(rankings: Sequence[TokenizedRanking]) -> tuple[list[int], _RowSize]:
    """The length of each ranking, and what the longest and the one of most answers need."""
    lengths, counts = zip(*((len(ranking), len(ranking.responses)) for ranking in rankings), strict=True)
    return list(lengths), _RowSize(-(-max(lengths) // _MULTIPLE) * _MULTIPLE, max(counts))


def _make_row(rankings: Sequence[TokenizedRanking], size: _RowSize, prompts: int, pad_id: int) -> RankingBatch:
    return layouts.ranking_row(
        rankings, length=size.length, max_prompts=prompts, max_responses=size.responses, pad_id=pad_id
    )
