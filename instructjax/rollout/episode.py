"""Turns sampled responses into what PPO learns from: log-probabilities, scores, rewards and advantages.

Everything is computed by full forward passes over the sampled token ids, with the
same function that the update differentiates. So the ratio at the first minibatch is 1,
however the sampler's cache was rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PyTree, Shaped

from instructjax import losses
from instructjax.batch import Episodes
from instructjax.models import unembedding
from instructjax.models.unembedding import Read
from instructjax.typing import AnyArray, Array, Model, Params, TokenIds


@runtime_checkable
class Scorer(Protocol):
    """A `ScalarModel`, or an object that computes rewards like one."""

    def apply(
        self,
        variables: Mapping[str, Params],
        tokens: Int[AnyArray, "B T"],
        segments: Int[AnyArray, "B T"],
        positions: Int[AnyArray, "B T"],
        *,
        deterministic: bool = True,
        rngs: Mapping[str, Key[Array, ""]] | None = None,
    ) -> Float[Array, "B T"]:
        """Computes a scalar for the text up to each token."""


class Experience(flax.struct.PyTreeNode):
    """Episodes with everything that an update needs, fixed at the time of the rollout.

    Attributes:
      episodes: prompts and responses.
      log_probs: of the response's tokens under the policy that sampled them.
      ref_log_probs: the same under the initial policy.
      values: of the critic before each token of the response; None without a critic.
      scores: of the reward model, with the penalty for a missing EOS; None in packed rows.
      advantages: see `algorithms/advantages.py`.
      returns: targets of the critic; None without one.
    """

    episodes: Episodes
    log_probs: Float[Array, "B R"]
    ref_log_probs: Float[Array, "B R"]
    values: Float[Array, "B R"] | None
    scores: Float[Array, "B"] | None
    advantages: Float[Array, "B R"]
    returns: Float[Array, "B R"] | None


def response_tokens(episodes: Episodes) -> Int[AnyArray, "B R"]:
    """Returns the tokens of the responses, padded on the right."""
    return episodes.tokens[:, -episodes.response_mask.shape[1] :]


def read_response(model: Model, params: Params, episodes: Episodes, read: Read) -> PyTree[Shaped[Array, "B R"]]:
    """Applies `read` to the logits of each token of the response; 0 on padding.

    The token in column P + t is predicted at column P + t - 1.
    """
    hidden, _ = model.apply({"params": params}, episodes.tokens, episodes.segments, episodes.positions, method="hidden")
    mask, tokens = episodes.response_mask, response_tokens(episodes)
    before = hidden[:, -mask.shape[1] - 1 : -1]
    if not episodes.packed:
        return unembedding.read_logits(model, params, before, tokens, mask, read)
    # Responses lie anywhere in a packed row. Moved to its left, they fill fewer chunks of logits.
    columns = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    mask, before, tokens, columns = unembedding.weighted_first(mask, before, tokens, columns)
    found = unembedding.read_logits(model, params, before, tokens, mask, read)
    back = jnp.argsort(columns, axis=1)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, back, axis=1), found)


def response_log_probs(
    model: Model, params: Params, episodes: Episodes, temperature: float = 1.0
) -> Float[Array, "B R"]:
    """Computes the policy's log pi(token | preceding tokens) at this temperature; 0 on padding."""
    return read_response(model, params, episodes, lambda logits, tokens: losses.log_probs(logits / temperature, tokens))


def response_log_probs_and_entropy(
    model: Model, params: Params, episodes: Episodes, temperature: float = 1.0
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Computes `response_log_probs`, and the policy's entropy before each token, in nats; 0 on padding."""

    def read(logits: Array, tokens: AnyArray) -> tuple[Array, Array]:
        logits /= temperature
        return losses.log_probs(logits, tokens), losses.entropy(logits)

    return read_response(model, params, episodes, read)


def response_values(model: Model, params: Params, episodes: Episodes) -> Float[Array, "B R"]:
    """Computes the value network's estimates before each token of the response; 0 on padding."""
    values = model.apply({"params": params}, episodes.tokens, episodes.segments, episodes.positions)
    return values[:, -episodes.response_mask.shape[1] - 1 : -1] * episodes.response_mask


def last_token(segments: Int[AnyArray, "*shape T"]) -> Int[Array, "*shape"]:
    """Returns the column of each row's last real token; -1 in an empty row."""
    columns = jnp.arange(segments.shape[-1])
    return jnp.max(jnp.where(segments > 0, columns, -1), axis=-1)


def score(
    model: Scorer,
    params: Params,
    tokens: Int[AnyArray, "B T"],
    segments: Int[AnyArray, "B T"],
    positions: Int[AnyArray, "B T"],
    *,
    deterministic: bool = True,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
) -> Float[Array, "B"]:
    """Computes the reward model's output at the last real token of each row.

    The same function scores answers in reward-model training and in PPO, on the token ids
    that the policy produced.
    """
    outputs = model.apply({"params": params}, tokens, segments, positions, deterministic=deterministic, rngs=rngs)
    return at_last_token(outputs, segments)


def at_last_token(outputs: Float[AnyArray, "B T"], segments: Int[AnyArray, "B T"]) -> Float[Array, "B"]:
    """Selects the output of a `ScalarModel` for the whole of each row."""
    return jnp.take_along_axis(outputs, last_token(segments)[:, None], axis=1)[:, 0]


def ended(episodes: Episodes, eos_id: TokenIds) -> Bool[Array, "B"]:
    """Returns whether each response ends with EOS."""
    return jnp.any(jnp.isin(response_tokens(episodes), jnp.asarray(eos_id)) & (episodes.response_mask > 0), axis=1)
