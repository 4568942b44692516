"""Batches as pytrees of arrays, as a device sees them.

The letters in shapes are those of `typing.py`. Shapes are not checked when a batch is made,
because under `jax.eval_shape` and `jax.vmap` a pytree also holds objects that are not arrays.

Masks are carried, never recomputed from token ids. `segments` says which tokens
belong together: 0 is padding, and a token sees only tokens of its own segment.
`positions` count the tokens of a segment from 0, so that padding and packing
do not change any output. `branches` separate the answers of a segment that holds several answers to one prompt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32

from instructjax.typing import Leaf


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one process reads.

    A batch is cut into equal parts, one for each group of devices that hold the same rows. A process reads the parts
    of its own devices. They need not be adjacent: on a TPU slice, a mesh follows the torus and not the hosts.

    Attributes:
      parts: the indices of this process's parts, in increasing order.
      count: the number of parts in total.
    """

    parts: tuple[int, ...] = (0,)
    count: int = 1

    def rows(self, size: int) -> np.ndarray:
        """Returns the indices of this process's rows in a global batch of `size` rows, a multiple of `count`."""
        return np.arange(size).reshape(self.count, -1)[list(self.parts)].reshape(-1)


EVERY_ROW = Share()


class LMBatch(flax.struct.PyTreeNode):
    """Rows of tokens to predict: pretraining text, or prompts with responses.

    Attributes:
      tokens: token ids.
      segments: 0 on padding.
      positions: from 0 in each segment.
      weights: `weights[b, t]` is the weight of predicting `tokens[b, t]` from the tokens
        before it, 0 where there is nothing to learn (prompts, padding, the first token of
        a segment).
    """

    tokens: Int32[Leaf, "B T"]
    segments: Int32[Leaf, "B T"]
    positions: Int32[Leaf, "B T"]
    weights: Float32[Leaf, "B T"]


class RankingBatch(flax.struct.PyTreeNode):
    """Prompts with their ranked answers: each prompt once, followed by its answers.

    A prompt with its answers is a segment, and a row holds up to S of them. A token of an
    answer sees the prompt and its own answer only, so the network computes what it would
    compute if that answer were the only one. Splitting a batch along B never splits a ranking.

    Attributes:
      tokens: the prompt, then each answer, ended by EOS.
      segments: 0 on padding, else the number of the prompt in its row, from 1.
      branches: 0 on a prompt and on padding, else the number of the answer, from 1.
      positions: those of each answer continue those of its prompt.
      ends: the column of each answer's last token.
      scores: higher is better, equal is a tie.
      valid: False where a row has fewer than S prompts or a prompt fewer than K answers.
    """

    tokens: Int32[Leaf, "B T"]
    segments: Int32[Leaf, "B T"]
    branches: Int32[Leaf, "B T"]
    positions: Int32[Leaf, "B T"]
    ends: Int32[Leaf, "B S K"]
    scores: Float32[Leaf, "B S K"]
    valid: Bool[Leaf, "B S K"]


class PromptBatch(flax.struct.PyTreeNode):
    """Prompts to answer, padded on the left so that all end in the same column.

    Attributes:
      tokens: token ids.
      segments: 1 on tokens and 0 on padding.
    """

    tokens: Int32[Leaf, "B P"]
    segments: Int32[Leaf, "B P"]


class Episodes(flax.struct.PyTreeNode):
    """Prompts with sampled responses, which PPO learns from.

    T = P + R: the first P columns hold the prompt (padded on the left), the last R
    the response (padded on the right, after EOS).

    Rows may also be packed with several episodes; see `rollout/packing.py`. Then every column but the first may belong
    to a response: P = 1 and R = T - 1.

    Attributes:
      tokens: token ids.
      segments: 1 on tokens and 0 on padding; in packed rows the number of the episode, from 1.
      positions: of each token in its episode, from 0.
      response_mask: 1 on the tokens of the response, EOS included.
      log_probs: of each token of the response, in the distribution from which the sampler
        drew it; 0 on padding. PPO computes its own in a full forward pass and compares them
        with these.
      group: index, in the global batch, of the prompt that a row answers; samples of one
        prompt share it. None in packed rows.
    """

    tokens: Int32[Leaf, "B T"]
    segments: Int32[Leaf, "B T"]
    positions: Int32[Leaf, "B T"]
    response_mask: Float32[Leaf, "B R"]
    log_probs: Float32[Leaf, "B R"]
    group: Int32[Leaf, "B"] | None

    @property
    def packed(self) -> bool:
        """Whether rows may have several episodes."""
        return self.group is None


def count_tokens(batch: Any) -> int:
    """Counts the tokens of a batch on the host, or of a tuple of batches, without padding.

    Anything in the tuple that is not a batch counts as 0.
    """
    parts = jax.tree.leaves(batch, is_leaf=lambda part: hasattr(part, "segments"))
    return sum(int((part.segments > 0).sum()) for part in parts if hasattr(part, "segments"))
