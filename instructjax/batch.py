"""What a device sees: batches as pytrees of arrays, with their shapes.

Letters in shapes: B rows of a batch, T tokens of a row, S prompts in a row, K answers
to a prompt, P tokens of a prompt, R tokens of a response.

Masks are carried, never recomputed from token ids. `segments` says which tokens
belong together: 0 is padding, and a token sees only tokens of its own segment.
`positions` count the tokens of a segment from 0, so that padding and packing
change no output. `branches` part a segment that holds several answers to one prompt.
"""

from __future__ import annotations

from typing import Any

import flax.struct

Array = Any  # a NumPy array on the host, a JAX array on a device


@flax.struct.dataclass
class LMBatch:
    """Rows of tokens to predict: pretraining text, or prompts with responses.

    Attributes:
      tokens: [B, T] int32.
      segments: [B, T] int32, 0 on padding.
      positions: [B, T] int32, from 0 in each segment.
      weights: [B, T] float32; `weights[b, t]` is the weight of predicting
        `tokens[b, t]` from the tokens before it, 0 where nothing is to be learned
        (prompts, padding, the first token of a segment).
    """

    tokens: Array
    segments: Array
    positions: Array
    weights: Array


@flax.struct.dataclass
class RankingBatch:
    """Prompts with their ranked answers: each prompt once, its answers side by side behind it.

    A prompt with its answers is a segment, and a row holds up to S of them. A token of an
    answer sees the prompt and its own answer, so the network computes for it what it would
    compute if the answer were alone behind the prompt. A cut along B parts no ranking.

    Attributes:
      tokens: [B, T] int32; the prompt, then each answer, ended by EOS.
      segments: [B, T] int32, 0 on padding, else the number of the prompt in its row, from 1.
      branches: [B, T] int32, 0 on a prompt and on padding, else the number of the answer to
        its prompt, from 1.
      positions: [B, T] int32; each answer's go on where its prompt's end.
      ends: [B, S, K] int32, the column of each answer's last token.
      scores: [B, S, K] float32, higher is better, equal is a tie.
      valid: [B, S, K] bool, False where a row has fewer than S prompts or a prompt fewer
        than K answers.
    """

    tokens: Array
    segments: Array
    branches: Array
    positions: Array
    ends: Array
    scores: Array
    valid: Array


@flax.struct.dataclass
class PromptBatch:
    """Prompts to answer, padded on the left so that all of them end together.

    Attributes:
      tokens: [B, P] int32.
      segments: [B, P] int32, 1 on tokens and 0 on padding.
    """

    tokens: Array
    segments: Array


@flax.struct.dataclass
class Episodes:
    """Prompts with sampled responses: what PPO learns from.

    The prompt fills the first P columns (padded on the left) and the response the
    last R (padded on the right, after EOS), T = P + R.

    Attributes:
      tokens: [B, T] int32.
      segments: [B, T] int32, 1 on tokens and 0 on padding.
      positions: [B, T] int32.
      response_mask: [B, R] float32, 1 on the tokens of the response, EOS included.
      log_probs: [B, R] float32, of each token of the response in the distribution that the
        sampler drew it from, 0 on padding. PPO computes its own by a full forward pass;
        these are compared with them.
      group: [B] int32, the prompt that a row answers, by its number in the global batch;
        samples of one prompt share it.
    """

    tokens: Array
    segments: Array
    positions: Array
    response_mask: Array
    log_probs: Array
    group: Array
