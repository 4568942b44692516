"""Makes batches of rankings: each prompt once with all of its answers, several prompts per row.

A row is as long as the longest ranking, so no ranking is cut. All rankings are tokenized once before the first batch,
because packing needs their lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain

from instructjax.batch import EVERY_ROW, RankingBatch, Share
from instructjax.data import bin_packing, layouts, packed_batches, pipeline
from instructjax.data.layouts import Layout, TokenizedRanking
from instructjax.data.mixtures import Mixture
from instructjax.data.pipeline import Batches, Rows
from instructjax.records import Ranking

_MULTIPLE = 8  # row lengths are multiples of this, because fused kernels need even lengths


@dataclasses.dataclass(frozen=True)
class _RowSize:
    """The size of a row.

    Attributes:
      length: T, tokens of a row.
      responses: K, the maximum number of responses in a ranking.
    """

    length: int
    responses: int


def tokenize_rankings(records: Sequence[Ranking], layout: Layout) -> Rows:
    """Returns a dataset of one `TokenizedRanking` per ranking. Each is tokenized when it is read."""
    return pipeline.indices(records).map(lambda index: layouts.tokenize_ranking(records[index], layout))


def ranking_rows(rankings: Sequence[TokenizedRanking], pad_id: int) -> Rows:
    """Returns rows of a `RankingBatch` for evaluation, packed in the order of the rankings.

    The valid answers of all rows, in order, are therefore the answers of all rankings, in order.

    Args:
      rankings: a list, or a dataset from `tokenize_rankings`.
      pad_id: the padding token.
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
    share: Share = EVERY_ROW,
    mixture: Mixture | None = None,
) -> Batches:
    """Returns a stream of `RankingBatch` for training; see `packed_batches.batches`.

    Args:
      rankings: a dataset from `tokenize_rankings`.
      pad_id: the padding token.
      batch_size: rankings (not rows) per global batch.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      steps: number of batches that will be read. More steps allow more shapes.
      multiple: the number of rows per global batch is rounded up to a multiple of this, so that it divides over devices
        and microbatches.
      share: the rows that this process reads.
      mixture: how often each source of rankings is drawn; None for every ranking once per epoch.
    """
    lengths, size = _measure(rankings)
    prompts = size.length // min(lengths)

    def make_row(indices: Sequence[int]) -> RankingBatch:
        return _make_row([rankings[i] for i in indices], size, prompts, pad_id)

    return packed_batches.batches(
        lengths,
        size.length,
        make_row,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        multiple=multiple,
        share=share,
        mixture=mixture,
    )


def _measure(rankings: Sequence[TokenizedRanking]) -> tuple[list[int], _RowSize]:
    """Returns the length of each ranking, and the smallest size of a row into which every ranking fits."""
    lengths, counts = zip(*((len(ranking), len(ranking.responses)) for ranking in rankings), strict=True)
    return list(lengths), _RowSize(-(-max(lengths) // _MULTIPLE) * _MULTIPLE, max(counts))


def _make_row(rankings: Sequence[TokenizedRanking], size: _RowSize, prompts: int, pad_id: int) -> RankingBatch:
    return layouts.ranking_row(
        rankings, length=size.length, max_prompts=prompts, max_responses=size.responses, pad_id=pad_id
    )
