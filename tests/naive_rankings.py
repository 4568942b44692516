"""Rankings the naive way, a row for each answer with its own copy of the prompt; packed ones are held against it."""

import dataclasses

import jax
import numpy as np

from instructjax import losses
from instructjax.data import layouts


@dataclasses.dataclass
class Naive:
    """One row an answer: tokens, segments, positions [B, K, T]; scores, valid [B, K]."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


jax.tree_util.register_dataclass(Naive)


def naive(rankings, length, answers, prompts=None):
    """Rankings, padded to `length` tokens, `answers` answers and `prompts` prompts."""
    shape = (prompts or len(rankings), answers)
    tokens, segments, positions = np.zeros((3, *shape, length), np.int32)
    scores, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for b, ranking in enumerate(rankings):
        for k, response in enumerate(ranking.responses):
            text = [*ranking.prompt, *response]
            tokens[b, k, : len(text)], segments[b, k, : len(text)] = text, 1
            positions[b, k, : len(text)] = np.arange(len(text))
            scores[b, k], valid[b, k] = ranking.scores[k], True
    return Naive(tokens, segments, positions, scores, valid)


def naive_rewards(model, params, batch):
    """[B, K]: a forward pass for each answer, read at its last token."""
    rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (batch.tokens, batch.segments, batch.positions))
    outputs = model.apply({"params": params}, *rows)
    last = jax.numpy.maximum(rows[1].sum(axis=1) - 1, 0)
    return outputs[jax.numpy.arange(len(last)), last].reshape(batch.scores.shape)


def naive_loss(model):
    def loss(params, batch, key):
        rewards = naive_rewards(model, params, batch)
        accuracy = losses.ranking_accuracy(rewards, batch.scores, batch.valid)
        return losses.ranking_loss(rewards, batch.scores, batch.valid), {"accuracy": accuracy}

    return loss


def packed(rows, *, length, prompts, answers, pad=0):
    """A `RankingBatch` of rows, each a list of rankings."""
    shape = {"length": length, "max_prompts": prompts, "max_responses": answers, "pad_id": pad}
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(layouts.ranking_row(row, **shape) for row in rows))


def taken(array, rows):
    """The numbers [B, S, K] of a packed batch in the order of the rankings, [n, K]; `rows` as in `packed`."""
    return np.concatenate([np.asarray(array)[b, : len(row)] for b, row in enumerate(rows)])
