"""What must hold between a rollout and the update that learns from it, as numbers that are 0 if it does.

Each is computed from the sampled token ids alone, beside the code that it watches: a
mask that is shifted there is not shifted here. They cost a few reductions over [B, T].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructjax.batch import Episodes
from instructjax.errors import InvariantError
from instructjax.rollout import episode

Array = jax.Array


def require_floating(**arrays: Array) -> None:
    """Refuses integers where a score, an advantage or a loss is expected, when the program is traced.

    Rewards of 0 and 1 as integers would be whitened and clipped as integers.

    Raises:
      InvariantError: names the array.
    """
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InvariantError(f"{name}: expected floating-point numbers, found {array.dtype}")


def last_columns(episodes: Episodes, eos_id: int) -> Array:
    """The column [B] of the last token that the policy produced: its first EOS, or else the last of all."""
    is_eos = episode.response_tokens(episodes) == eos_id
    size = is_eos.shape[1]
    last = jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1), size - 1)
    return episodes.tokens.shape[1] - size + last


def mask_mismatches(episodes: Episodes, eos_id: int) -> Array:
    """How many cells of masks, segments and positions disagree with the tokens, or with each other.

    A response goes from the first column after the prompt to its first EOS; before it
    the row holds one segment, padded on the left; positions count its tokens from 0.
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
    return sum(cells.sum() for cells in wrong).astype(jnp.float32)


def score_read_error(scores: Array, outputs: Array, episodes: Episodes, eos_id: int) -> Array:
    """The largest difference between the scores and the reward model's output at the last token that was produced.

    Args:
      scores: [B], as they were read.
      outputs: [B, P + R], the reward model's output for the text up to each token.
      episodes: [B, P + R].
      eos_id: ends a response.
    """
    last = last_columns(episodes, eos_id)
    return jnp.abs(scores - outputs[jnp.arange(last.shape[0]), last]).max()


def reward_placement_error(rewards: Array, scores: Array, penalties: Array, episodes: Episodes, eos_id: int) -> Array:
    """The largest difference, in units of reward, between the rewards and what they should be.

    They should be the KL penalty on each token of the response, and the score on its last one.

    Args:
      rewards: [B, R], as advantages are computed from them.
      scores: [B].
      penalties: [B, R], beta times the log-ratio of each token.
      episodes: [B, P + R].
      eos_id: ends a response.
    """
    size = rewards.shape[1]
    last = last_columns(episodes, eos_id)[:, None] - (episodes.tokens.shape[1] - size)
    columns = jnp.arange(size)
    expected = jnp.where(columns <= last, -penalties, 0.0) + jnp.where(columns == last, scores[:, None], 0.0)
    return jnp.abs(rewards - expected).max()
