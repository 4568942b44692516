"""Measures whether a rollout and the update that learns from it agree: each number is 0 if they do.

Each number is computed from the sampled token ids alone, independently of the code that
it checks, so that a bug there is not repeated here. The checks cost a few reductions over
[B, T].
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from instructjax.batch import Episodes
from instructjax.errors import InvariantError
from instructjax.rollout import episode
from instructjax.rollout.packing import Packing
from instructjax.typing import AnyArray, Array, TokenIds


def require_floating(**arrays: Shaped[AnyArray, "..."]) -> None:
    """Raises an error at trace time if a score, an advantage or a loss is an integer array.

    Integer rewards of 0 and 1, for example, would be whitened and clipped as integers.

    Raises:
      InvariantError: an array is not floating-point; the message names it.
    """
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InvariantError(f"{name}: expected floating-point numbers, found {array.dtype}")


def last_columns(episodes: Episodes, eos_id: TokenIds) -> Int[Array, "B"]:
    """Returns the column of the last token that the policy produced: its first EOS, or else the last column."""
    is_eos = jnp.isin(episode.response_tokens(episodes), jnp.asarray(eos_id))
    size = is_eos.shape[1]
    last = jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1), size - 1)
    return episodes.tokens.shape[1] - size + last


def mask_mismatches(episodes: Episodes, eos_id: TokenIds) -> Float[Array, ""]:
    """Counts the cells of masks, segments and positions that disagree with the tokens, or with each other.

    A response goes from the first column after the prompt to its first EOS. A row is one
    segment, padded on the left before the prompt, and positions count its tokens from 0.
    """
    size = episodes.response_mask.shape[1]
    columns = jnp.arange(episodes.tokens.shape[1])
    last = last_columns(episodes, eos_id)
    prompt = episodes.segments[:, :-size] > 0
    inside = jnp.concatenate([prompt, columns[None, -size:] <= last[:, None]], axis=1)
    length = prompt.sum(axis=1)
    start = columns.shape[0] - size - length
    positions = jnp.where(inside, columns - start[:, None], 0)
    wrong = [
        (episodes.response_mask > 0) != inside[:, -size:],
        (episodes.segments > 0) != inside,
        (columns >= start[:, None])[:, :-size] != prompt,  # padding only before the prompt
        (episodes.positions != positions) & inside,
    ]
    return sum((cells.sum() for cells in wrong), start=jnp.zeros((), jnp.int32)).astype(jnp.float32)


def packing_mismatches(packed: Episodes, episodes: Episodes, packing: Packing) -> Float[Array, ""]:
    """Counts the tokens that packed rows do not have as the padded rows have them, and those that they have too many.

    Args:
      packed: what `packing.episodes` returned.
      episodes: what was packed.
      packing: where the tokens should lie.
    """
    (rows, length), size = episodes.tokens.shape, episodes.response_mask.shape[1]
    inside = episodes.segments > 0
    tokens, segments, positions = packing.unpack((packed.tokens, packed.segments, packed.positions))
    mask = packing.unpack_responses(packed.response_mask, size)
    cells = packing.cells
    follows = (cells[:, 1:] == cells[:, :-1] + 1) & (cells[:, 1:] // length == cells[:, :-1] // length)
    number = jnp.arange(rows)[:, None] + 1
    wrong = [
        inside & ((tokens != episodes.tokens) | (positions != episodes.positions) | (segments != number)),
        mask != episodes.response_mask,
        inside[:, 1:] & inside[:, :-1] & ~follows,
        (packed.response_mask > 0) & (packed.segments[:, 1:] == 0),
    ]
    count = sum((cells.sum() for cells in wrong), start=jnp.zeros((), jnp.int32))
    return (count + jnp.abs((packed.segments > 0).sum() - inside.sum())).astype(jnp.float32)


def score_read_error(
    scores: Float[AnyArray, "B"], outputs: Float[AnyArray, "B T"], episodes: Episodes, eos_id: TokenIds
) -> Float[Array, ""]:
    """Returns the largest difference between the scores and the reward model's output at the last produced token.

    Args:
      scores: the scores as read.
      outputs: of the reward model, for the text up to each token.
      episodes: what was scored.
      eos_id: ends a response, or several that do.
    """
    last = last_columns(episodes, eos_id)
    return jnp.abs(scores - outputs[jnp.arange(last.shape[0]), last]).max()


def reward_placement_error(
    rewards: Float[AnyArray, "B R"],
    scores: Float[AnyArray, "B"],
    penalties: Float[AnyArray, "B R"],
    episodes: Episodes,
    eos_id: TokenIds,
) -> Float[Array, ""]:
    """Returns the largest difference, in units of reward, between the rewards and what they should be.

    They should be the KL penalty on each token of the response, and the score on its last one.

    Args:
      rewards: the rewards from which advantages are computed.
      scores: of the reward model.
      penalties: beta times the log-ratio of each token.
      episodes: what was scored.
      eos_id: ends a response, or several that do.
    """
    size = rewards.shape[1]
    last = last_columns(episodes, eos_id)[:, None] - (episodes.tokens.shape[1] - size)
    columns = jnp.arange(size)
    expected = jnp.where(columns <= last, -penalties, 0.0) + jnp.where(columns == last, scores[:, None], 0.0)
    return jnp.abs(rewards - expected).max()
