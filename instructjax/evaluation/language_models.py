"""The loss of a language model on held-out text or demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax

from instructjax.batch import LMBatch
from instructjax.models.partitioning import constrain_rows, replicate
from instructjax.models.transformer import LanguageModel
from instructjax.training import objectives
from instructjax.training.state import Params


def held_out_loss(model: LanguageModel) -> Callable[[Params, Iterable[LMBatch]], float]:
    """Builds `loss(params, batches)`, the mean cross-entropy per weighted token over all batches, in nats.

    Args:
      model: a model without dropout.
    """
    objective = objectives.language_model_loss(model)
    sums = jax.jit(lambda params, batch: replicate(objective(params, constrain_rows(batch), None)[0]))

    def loss(params: Params, batches: Iterable[LMBatch]) -> float:
        pairs = [jax.device_get(sums(params, batch)) for batch in batches]
        return float(sum(total for total, _ in pairs) / sum(weight for _, weight in pairs))

    return loss
