"""From demonstrations to batches: whole prompts with their responses, several to a row.

For SFT, and, with rows of pretraining text among them, for the model that PPO starts from. A row has
`Layout.length` tokens, which every demonstration fits into. To know their lengths, all are tokenised once before
the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain

from instructjax.batch import LMBatch
from instructjax.data import bin_packing, layouts, packed_batches, pipeline
from instructjax.data.layouts import Layout
from instructjax.data.pipeline import Batches, Rows, Share
from instructjax.errors import ConfigError
from instructjax.records import Demonstration, Text

_WINDOW = "a window of text"  # stands for one where lengths are read ahead


def rows(records: Sequence[Demonstration], layout: Layout) -> Rows:
    """Rows of an `LMBatch` for evaluation, packed in the order of the demonstrations; see `layouts.demonstration_row`."""
    lengths = _lengths(records, layout)
    fit = bin_packing.next_fit(lengths, layout.length)
    return grain.MapDataset.range(len(fit)).map(
        lambda row: layouts.demonstration_row([records[i] for i in fit[row]], layout)
    )


def batches(
    records: Sequence[Demonstration],
    layout: Layout,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    prompt_weight: float = 0.0,
    multiple: int = 1,
    share: Share = (0, 1),
) -> Batches:
    """Batches of an `LMBatch` for training; see `packed_batches.batches`.

    Args:
      records: demonstrations that fit the layout.
      layout: the lengths; T = layout.length.
      batch_size: demonstrations, not rows, of a global batch.
      seed: of all orders.
      steps: batches that are going to be read.
      prompt_weight: see `layouts.demonstration_row`.
      multiple: of which the number of rows of a global batch is one.
      share: (i, n), where this process reads part i of n of the rows.
    """

    def make(indices: Sequence[int]) -> LMBatch:
        return layouts.demonstration_row([records[i] for i in indices], layout, prompt_weight)

    return packed_batches.batches(
        _lengths(records, layout),
        layout.length,
        make,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        multiple=multiple,
        share=share,
    )


def mixed_batches(
    records: Sequence[Demonstration],
    text: Sequence[Text],
    layout: Layout,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    text_share: float = 0.1,
    prompt_weight: float = 0.0,
    multiple: int = 1,
    share: Share = (0, 1),
) -> Batches:
    """Batches for the model that PPO starts from: demonstrations and some pretraining text (appendix C.3).

    Examples of the two kinds take turns in a fixed pattern: with a share of 0.1, each tenth is a window of text.

    Args:
      records: demonstrations that fit the layout.
      text: documents, packed into windows of layout.length tokens as in `pipeline.text_batches`.
      layout: the lengths; T = layout.length.
      batch_size: examples, not rows, of a global batch.
      seed: of all orders, from 0 to 2**32 - 1.
      steps: batches that are going to be read.
      text_share: share of examples that are text, between 0 and 1. The paper has 0.1.
      prompt_weight: see `layouts.demonstration_row`.
      multiple: of which the number of rows of a global batch is one.
      share: (i, n), where this process reads part i of n of the rows.

    Returns:
      A stream of `LMBatch`, as in `batches`.

    Raises:
      ConfigError: `text_share` is impossible.
    """
    if not 0 < text_share < 1:
        raise ConfigError(f"ppo_init.text_share: expected a share between 0 and 1, found {text_share}")
    lengths = _lengths(records, layout)
    order = pipeline.indices(records).seed(seed).shuffle().repeat().to_iter_dataset(pipeline.READ_OPTIONS)
    documents = pipeline.indices(text).seed(seed).shuffle().repeat()

    def mixed(windows: grain.IterDataset) -> grain.IterDataset:
        weights = [1 - text_share, text_share]
        return grain.IterDataset.mix([order, windows], weights=weights).batch(batch_size, batch_fn=list)

    def fitted(drawn: list[Any]) -> list[list[Any]]:
        indices = [example for example in drawn if isinstance(example, int)]
        windows = [example for example in drawn if not isinstance(example, int)]
        return [*packed_batches.pack_batch(lengths, indices, layout.length), *([window] for window in windows)]

    def make(row: list[Any]) -> LMBatch:
        if row and isinstance(row[0], LMBatch):
            return row[0]
        return layouts.demonstration_row([records[i] for i in row], layout, prompt_weight)

    return packed_batches.stream(
        mixed(bin_packing.Windows(text, documents, layout.tokenizer, layout.length)),
        mixed(grain.MapDataset.source([_WINDOW]).repeat().to_iter_dataset(pipeline.READ_OPTIONS)),
        fitted,
        make,
        steps,
        multiple,
        share,
    )


def _lengths(records: Sequence[Demonstration], layout: Layout) -> list[int]:
    def length(record: Demonstration) -> int:
        return len(layout.encode_prompt(record.prompt, record.where)) + len(layout.encode_response(record.response, record.where))

    return [length(records[i]) for i in pipeline.indices(records)]
