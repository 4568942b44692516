"""From sampled responses to what PPO learns from: log-probabilities, scores, rewards, advantages.

Everything is computed by full forward passes over the sampled token ids, with the
same function that the update differentiates. So the ratio at the first minibatch is
1, whatever the sampler's cache rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from instructjax import losses
from instructjax.batch import Episodes
from instructjax.models import unembedding

Array = jax.Array
Params = Any


@flax.struct.dataclass
class Experience:
    """Episodes with everything an update needs, fixed at the time of the rollout.

    Attributes:
      episodes: prompts and responses, [B, P + R].
      log_probs: [B, R] of the response's tokens under the policy that sampled them.
      ref_log_probs: [B, R] the same under the initial policy.
      values: [B, R] the value network before each token of the response.
      scores: [B] the reward model's, with the penalty for a missing EOS.
      advantages: [B, R] whitened over the whole batch.
      returns: [B, R] targets of the value network.
    """

    episodes: Episodes
    log_probs: Array
    ref_log_probs: Array
    values: Array
    scores: Array
    advantages: Array
    returns: Array


def response_tokens(episodes: Episodes) -> Array:
    """The response's tokens [B, R], padded on the right."""
    return episodes.tokens[:, -episodes.response_mask.shape[1] :]


def read_response(model: Any, params: Params, episodes: Episodes, read: Callable[[Array, Array], Any]) -> Any:
    """What `read(logits [..., V], tokens [...])` says of each token of the response, a pytree of [B, R]; 0 on padding.

    The token in column P + t is predicted at column P + t - 1.
    """
    hidden, _ = model.apply({"params": params}, episodes.tokens, episodes.segments, episodes.positions, method="hidden")
    before = hidden[:, -episodes.response_mask.shape[1] - 1 : -1]
    tokens = response_tokens(episodes)
    return unembedding.read_logits(model, params, before, tokens, episodes.response_mask, read)


def response_log_probs(model: Any, params: Params, episodes: Episodes, temperature: float = 1.0) -> Array:
    """log pi(token | what precedes it), [B, R], of the policy at this temperature; 0 on padding."""
    return read_response(model, params, episodes, lambda logits, tokens: losses.log_probs(logits / temperature, tokens))


def response_values(model: Any, params: Params, episodes: Episodes) -> Array:
    """The value network's estimates [B, R] before each token of the response; 0 on padding."""
    values = model.apply({"params": params}, episodes.tokens, episodes.segments, episodes.positions)
    return values[:, -episodes.response_mask.shape[1] - 1 : -1] * episodes.response_mask


def last_token(segments: Array) -> Array:
    """The column of each row's last real token, [...] from [..., T]; -1 in an empty row."""
    columns = jnp.arange(segments.shape[-1])
    return jnp.max(jnp.where(segments > 0, columns, -1), axis=-1)


def score(
    model: Any,
    params: Params,
    tokens: Array,
    segments: Array,
    positions: Array,
    *,
    deterministic: bool = True,
    rngs: dict[str, Array] | None = None,
) -> Array:
    """The reward model's output at the last real token of each row, [B] from [B, T].

    The same function scores answers in the reward model's training and in PPO, on the
    very token ids that the policy produced.
    """
    outputs = model.apply({"params": params}, tokens, segments, positions, deterministic=deterministic, rngs=rngs)
    return at_last_token(outputs, segments)


def at_last_token(outputs: Array, segments: Array) -> Array:
    """What a ScalarModel says of each whole row [B], of its outputs [B, T] for the text up to each token."""
    return jnp.take_along_axis(outputs, last_token(segments)[:, None], axis=1)[:, 0]


def ended(episodes: Episodes, eos_id: int) -> Array:
    """True where the response ends with EOS, [B]."""
    return jnp.any((response_tokens(episodes) == eos_id) & (episodes.response_mask > 0), axis=1)
