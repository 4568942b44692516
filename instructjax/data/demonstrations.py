"""Makes batches of demonstrations: whole prompts with their responses, several per row.

`batches` is for SFT. `mixed_batches` adds rows of pretraining text, for the model from which PPO starts. A row has
`Layout.length` tokens, so every demonstration fits into one. All demonstrations are tokenized once before the first
batch, because packing needs their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from instructjax.batch import EVERY_ROW, LMBatch, Share
from instructjax.data import bin_packing, layouts, mixtures, packed_batches, pipeline
from instructjax.data.layouts import Layout
from instructjax.data.mixtures import Mixture
from instructjax.data.pipeline import Batches, Rows
from instructjax.errors import ConfigError
from instructjax.records import Demonstration


def rows(records: Sequence[Demonstration], layout: Layout) -> Rows:
    """Returns rows for evaluation, packed in the order of the demonstrations; see `layouts.demonstration_row`."""
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
    share: Share = EVERY_ROW,
    mixture: Mixture | None = None,
) -> Batches:
    """Returns a stream of `LMBatch` for training; see `packed_batches.batches`.

    Args:
      records: demonstrations that fit the layout.
      layout: the lengths; T = layout.length.
      batch_size: demonstrations (not rows) per global batch.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      steps: number of batches that will be read.
      prompt_weight: see `layouts.demonstration_row`.
      multiple: the number of rows per global batch is rounded up to a multiple of this.
      share: the rows that this process reads.
      mixture: how often each source of demonstrations is drawn; None for every demonstration once per epoch.
    """

    def make_row(indices: Sequence[int]) -> LMBatch:
        return layouts.demonstration_row([records[i] for i in indices], layout, prompt_weight)

    return packed_batches.batches(
        _lengths(records, layout),
        layout.length,
        make_row,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        multiple=multiple,
        share=share,
        mixture=mixture,
    )


def mixed_batches(
    records: Sequence[Demonstration],
    text: Sequence[np.ndarray],
    layout: Layout,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    text_share: float = 0.1,
    prompt_weight: float = 0.0,
    multiple: int = 1,
    share: Share = EVERY_ROW,
    mixture: Mixture | None = None,
    text_mixture: Mixture | None = None,
) -> Batches:
    """Returns batches of demonstrations and pretraining text, for the model from which PPO starts (appendix C.3).

    The two kinds of examples alternate in a fixed pattern. With a text share of 0.1, every tenth example is a window of
    text.

    Args:
      records: demonstrations that fit the layout.
      text: documents, arrays [n] of token ids, packed into windows of layout.length tokens as in
        `pipeline.text_batches`.
      layout: the lengths; T = layout.length.
      batch_size: examples (not rows) per global batch.
      seed: decides all orders, from 0 to 2**32 - 1.
      steps: number of batches that will be read.
      text_share: the share of examples that are text, between 0 and 1. The paper uses 0.1.
      prompt_weight: see `layouts.demonstration_row`.
      multiple: the number of rows per global batch is rounded up to a multiple of this.
      share: the rows that this process reads.
      mixture: see `batches`.
      text_mixture: the same for the sources of documents.

    Returns:
      A stream of `LMBatch`, as in `batches`.

    Raises:
      ConfigError: `text_share` is not between 0 and 1.
    """
    if not 0 < text_share < 1:
        raise ConfigError(f"ppo_init.text_share: expected a share between 0 and 1, found {text_share}")
    lengths = _lengths(records, layout)
    order = mixtures.order(len(records), seed, mixture).to_iter_dataset(pipeline.READ_OPTIONS)
    windows = bin_packing.Windows(text, mixtures.order(len(text), seed, text_mixture), layout.length)
    examples = grain.IterDataset.mix([order, windows], weights=[1 - text_share, text_share])

    def pack(drawn: list[Any]) -> list[list[Any]]:
        indices = [example for example in drawn if isinstance(example, int)]
        windows = [example for example in drawn if not isinstance(example, int)]
        return [*packed_batches.pack_batch(lengths, indices, layout.length), *([window] for window in windows)]

    def make_row(row: list[Any]) -> LMBatch:
        if row and not isinstance(row[0], int):
            return bin_packing.read_window(text, row[0], layout.tokenizer, layout.length)
        return layouts.demonstration_row([records[i] for i in row], layout, prompt_weight)

    items = examples.batch(batch_size, batch_fn=list)
    return packed_batches.stream(items, pack, make_row, steps, multiple, share)


def _lengths(records: Sequence[Demonstration], layout: Layout) -> list[int]:
    def length(record: Demonstration) -> int:
        prompt = layout.encode_prompt(record.prompt, record.where)
        return len(prompt) + len(layout.encode_response(record.response, record.where))

    return [length(records[i]) for i in pipeline.indices(records)]
