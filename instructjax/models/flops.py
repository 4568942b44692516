"""Counts the floating-point operations of programs and the bytes that they must read and write.

There are two counts of operations. In both, a multiply-add counts as 2.

- `Work.flops`, the model FLOPs, is a formula: the matmuls that the mathematics needs. A
  training step takes three times the FLOPs of its forward pass.
- `traced_flops.count_matmul_flops` counts the matmuls that a program executes. They are more if activations are
  recomputed in the backward pass, or if attention multiplies with keys that the mask hides.

Neither counts norms, softmax or the optimizer, which are below one percent of a large model.

Letters: B rows, T tokens of a row, L layers, d width, H heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from instructjax.batch import LMBatch, RankingBatch
from instructjax.models import lora
from instructjax.models.config import TransformerConfig
from instructjax.models.lora import LoraConfig
from instructjax.models.sizes import count_parameters, matrix_parameters

FLOPS_PER_PETAFLOP_DAY = 1e15 * 86_400  # the unit of the paper's section 5


@dataclasses.dataclass(frozen=True)
class Work:
    """A lower bound on the cost of a phase of a program, summed over all devices.

    Attributes:
      flops: model FLOPs.
      weight_bytes: bytes of weights read, once per pass of a device over its rows. Each device
        reads its tensor-parallel share of all layers, stored or gathered.
      bytes: bytes of everything else read or written: optimizer state, cache, activations kept
        for the backward pass. They are divided over all devices.
    """

    flops: float
    weight_bytes: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weight_bytes + other.weight_bytes, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.weight_bytes, times * self.bytes)


def forward_flops(
    config: TransformerConfig, rows: int, length: float, outputs: float, *, slots: float | None = None
) -> float:
    """Computes the FLOPs of a language model's forward pass.

    Args:
      config: the model.
      rows: B.
      length: T, or its mean over rows.
      outputs: tokens per row for which logits are computed, or their mean.
      slots: keys by which each query is multiplied, on average, including masked ones, as in a cache of
        fixed size. None counts what causal attention needs: a token's own key and those before it, in local layers
        those of the window.
    """
    inner = config.num_heads * config.d_head
    keys = _causal_keys(config, length) if slots is None else slots
    layer = 2 * length * matrix_parameters(config) + 4 * length * keys * inner
    return rows * (config.num_layers * layer + 2 * outputs * config.d_model * config.vocab_size)


def _causal_keys(config: TransformerConfig, length: float) -> float:
    """Returns how many keys a query of a row of `length` tokens sees, on average over queries and layers."""
    window, dense = config.local_window, (length + 1) / 2
    if window is None or length <= window:
        return dense
    return _mean_over_layers(config, dense, window - window * (window - 1) / (2 * length))


def _seen_keys(config: TransformerConfig, positions: np.ndarray) -> float:
    """Returns how many keys queries at these positions of their texts see, on average over queries and layers."""
    dense = (positions + 1.0).mean()
    if config.local_window is None:
        return dense
    return _mean_over_layers(config, dense, np.minimum(positions + 1.0, config.local_window).mean())


def _mean_over_layers(config: TransformerConfig, dense: float, local: float) -> float:
    kinds = [config.window_pattern[layer % len(config.window_pattern)] for layer in range(config.num_layers)]
    return dense + kinds.count("L") / config.num_layers * (local - dense)


def scalar_flops(config: TransformerConfig, rows: int, length: float) -> float:
    """Computes the FLOPs of a scalar model's forward pass: the trunk, and d multiply-adds per token."""
    return forward_flops(config, rows, length, 0) + 2 * rows * length * config.d_model


def ranking_flops(config: TransformerConfig, rows: int, prompt: int, answers: int, response: int) -> float:
    """Computes the FLOPs of a scalar model's forward pass over prompts with several answers each.

    The prompt is computed once. A token of an answer sees the prompt and its own answer only.

    Args:
      config: the model.
      rows: prompts.
      prompt: tokens of a prompt.
      answers: K, answers to a prompt.
      response: tokens of an answer.
    """
    keys = _seen_keys(config, prompt + np.arange(response))
    branches = forward_flops(config, rows * answers, response, 0, slots=keys)
    head = 2 * rows * answers * response * config.d_model
    return scalar_flops(config, rows, prompt) + branches + head


def training_flops(
    config: TransformerConfig, batch: Any, *, logits: bool, frozen: int = 0, adapters: LoraConfig | None = None
) -> float:
    """Computes the FLOPs of a training step on these rows: of each token with the tokens that it sees.

    Padding and masked pairs are not counted. In a row, a token sees as many tokens as its position says.

    Args:
      config: the model.
      batch: an `LMBatch` or a `RankingBatch`; anything else counts as 0.
      logits: whether the model is a language model, which computes logits of the tokens that the loss reads.
      frozen: the number of models of the same shape that only read the rows, such as a reference policy.
      adapters: what learns, if not all weights do.
    """
    if not isinstance(batch, (LMBatch, RankingBatch)):
        return 0.0
    real = np.asarray(batch.segments) > 0
    tokens = int(real.sum())
    if not tokens:
        return 0.0
    read = np.asarray(batch.weights if isinstance(batch, LMBatch) else batch.branches) > 0
    seen = _seen_keys(config, np.asarray(batch.positions)[real])
    outputs = int(read.sum()) if logits else 0
    forward = forward_flops(config, 1, tokens, outputs, slots=float(seen))
    return gradient_flops(config, forward, tokens, outputs, adapters) + frozen * forward


def gradient_flops(
    config: TransformerConfig, forward: float, tokens: float, outputs: float, adapters: LoraConfig | None = None
) -> float:
    """Computes the FLOPs of a forward and a backward pass.

    Each matmul of the forward pass has two in the backward pass, one for the gradient of each operand. With adapters,
    frozen weights need no gradient, and each adapter adds one matmul to the forward pass and two to the backward pass.

    Args:
      config: the model.
      forward: FLOPs of the forward pass, without adapters.
      tokens: tokens of all rows.
      outputs: tokens of all rows for which logits are computed.
      adapters: what learns, if not all weights do.
    """
    if adapters is None:
        return 3 * forward
    weights = tokens * config.num_layers * matrix_parameters(config) + outputs * config.d_model * config.vocab_size
    return 3 * forward - 2 * weights + 6 * tokens * lora.count_parameters(adapters, config)


def iteration_flops(
    policy: TransformerConfig,
    scorer: TransformerConfig | None,
    critic: TransformerConfig | None,
    *,
    rows: int,
    prompt: float,
    response: float,
    epochs: int,
    critic_epochs: int,
    samples: int = 1,
    adapters: LoraConfig | None = None,
) -> float:
    """Computes the FLOPs of a PPO iteration without its pretraining text.

    Each episode is sampled once, read once by policy, reference, scorer and critic, and learned from in each epoch.

    Args:
      policy: also the reference.
      scorer: the reward model; None if a function gives the scores.
      critic: the value network; None without one.
      rows: episodes.
      prompt: mean tokens of their prompts.
      response: mean tokens of their responses. Attention is counted as if all had the same length, so less than it is.
      epochs: passes of the policy over the episodes; 0 while only the critic learns.
      critic_epochs: those of the critic.
      samples: responses to a prompt that share its prefill.
      adapters: what learns, if not all weights do.
    """
    length = prompt + response
    forward = forward_flops(policy, rows, length, response)
    total = 3 * forward - (rows - rows / samples) * forward_flops(policy, 1, prompt, 1)
    total += epochs * gradient_flops(policy, forward, rows * length, rows * response, adapters)
    if scorer is not None:
        total += scalar_flops(scorer, rows, length)
    if critic is not None:
        forward = scalar_flops(critic, rows, length)
        total += forward + critic_epochs * gradient_flops(critic, forward, rows * length, 0, adapters)
    return total


def weight_bytes(config: TransformerConfig, dtype: str = "") -> float:
    """Computes the bytes of the matrices of a forward pass, in a dtype, or else in that of its computation."""
    embedding = config.vocab_size * config.d_model
    return (config.num_layers * matrix_parameters(config) + embedding) * itemsize(dtype or config.dtype)


def activation_bytes(config: TransformerConfig, rows: int, length: int) -> float:
    """Computes the bytes of the input of each block, the least that is kept for the backward pass."""
    return rows * length * config.num_layers * config.d_model * itemsize(config.dtype)


def cache_bytes(config: TransformerConfig, rows: int, slots: int) -> float:
    """Computes the bytes of the keys and values of `rows` sequences of `slots` tokens."""
    shared = config.kv_heads * config.d_head
    return 2 * config.num_layers * rows * slots * shared * itemsize(config.dtype)


def forward_work(config: TransformerConfig, flops: float) -> Work:
    """Returns the work of one forward pass without a gradient."""
    return Work(flops, weight_bytes(config), 0.0)


def learned_parameters(config: TransformerConfig, adapters: LoraConfig | None) -> int:
    """Counts the parameters of a `LanguageModel` that learn; a `ScalarModel` has d_model + 1 more."""
    return count_parameters(config) if adapters is None else lora.count_parameters(adapters, config)


def update_work(
    config: TransformerConfig,
    flops: float,
    rows: int,
    length: int,
    microbatches: int = 1,
    *,
    outputs: int = 0,
    adapters: LoraConfig | None = None,
) -> Work:
    """Returns the work of a gradient.

    Each microbatch reads the weights in its forward and its backward pass, and once more if
    the backward pass recomputes the layers. Gradients are accumulated in float32.

    Args:
      config: the model.
      flops: FLOPs of the forward pass over all rows.
      rows: B.
      length: T.
      microbatches: the number of parts in which the rows are computed.
      outputs: tokens per row for which logits are computed.
      adapters: what learns, if not all weights do.
    """
    passes = microbatches * (3 if config.remat in ("attention", "all") else 2)
    gradient = 2 * microbatches * 4 * learned_parameters(config, adapters)
    executed = gradient_flops(config, flops, rows * length, rows * outputs, adapters)
    return Work(executed, passes * weight_bytes(config), 2 * activation_bytes(config, rows, length) + gradient)


def adam_work(config: TransformerConfig, adapters: LoraConfig | None = None) -> Work:
    """Returns the work of one Adam update.

    Weights that learn, gradient and two moments are read, and all but the gradient written, in float32.
    """
    return Work(0.0, 0.0, 7 * 4 * learned_parameters(config, adapters))


def decode_work(
    config: TransformerConfig,
    rows: int,
    width: int,
    response: int,
    parts: int = 1,
    turns: int | None = None,
    samples: int = 1,
) -> tuple[Work, Work]:
    """Returns the work of sampling: (prefill, decode).

    Each query is multiplied with all slots of the cache. The products of integers of "int8xint8" are counted like
    others, although chips multiply integers faster: their time at the peak of bfloat16 is not the least.

    Args:
      config: the model.
      rows: B.
      width: P, tokens of a prompt.
      response: R, the most tokens of a response. Prefill samples the first of them.
      parts: the number of batches of rows that a device decodes, one after the other.
      turns: with continuous batching, the number of prefills on a device, whose queries see the
        slots of the prompt only. None: one prefill per part, with all slots of the cache.
      samples: responses to a prompt, which share its prefill.
    """
    slots = width + response
    seen, passes = (slots, parts) if turns is None else (width, turns)

    def work(rows: int, tokens: int, slots: int, passes: int) -> Work:
        read = passes * weight_bytes(config, "int8" if config.decoding_dtype else "")
        return Work(forward_flops(config, rows, tokens, 1, slots=slots), read, cache_bytes(config, rows, slots))

    prefill, token = work(rows // samples, width, seen, passes), work(rows, 1, slots, parts)
    return prefill, (response - 1) * token


def itemsize(dtype: str) -> int:
    """Returns the bytes of one number."""
    return jax.numpy.dtype(dtype).itemsize
