"""The equations and layouts of the package, computed in a slow and obvious way.

Equations are loops over Python floats, written from the formulas, one number at a time. So mistakes
of the fast version in broadcasting, axes, precision or order cannot occur here. Arguments are NumPy
arrays; sums are float64. Rankings have a row for each answer, with its own copy of the prompt.
"""

import dataclasses
import math

import jax
import numpy as np

from instructjax import losses
from instructjax.data import layouts
from instructjax.training.metrics import Mean

# Equations.


def log_probs(logits, tokens):
    out = np.zeros(np.shape(tokens))
    for place in np.ndindex(*np.shape(tokens)):
        row = [float(z) for z in logits[place]]
        top = max(row)
        out[place] = row[tokens[place]] - top - math.log(math.fsum(math.exp(z - top) for z in row))
    return out


def entropy(logits):
    shape = np.shape(logits)[:-1]
    out = np.zeros(shape)
    for place in np.ndindex(*shape):
        for v in range(np.shape(logits)[-1]):
            log_p = log_probs(logits[place][None], np.array([v]))[0]
            out[place] -= math.exp(log_p) * log_p if log_p > -math.inf else 0.0
    return out


def weighted_sum(x, weights):
    total = weight = 0.0
    for place in np.ndindex(*np.shape(x)):
        if weights[place]:
            total += float(x[place]) * float(weights[place])
            weight += float(weights[place])
    return total, weight


def ranking_loss(rewards, scores, valid):
    total, prompts = 0.0, 0
    for b in range(len(rewards)):
        costs, pairs = [], 0
        for i in range(len(rewards[b])):
            for j in range(i + 1, len(rewards[b])):
                if not (valid[b][i] and valid[b][j]):
                    continue
                pairs += 1
                if scores[b][i] == scores[b][j]:
                    continue
                winner, loser = (i, j) if scores[b][i] > scores[b][j] else (j, i)
                margin = float(rewards[b][winner]) - float(rewards[b][loser])
                costs.append(max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))))
        if costs:
            total += sum(costs) / pairs
            prompts += 1
    return total, prompts


def ranking_accuracy(rewards, scores, valid):
    right, pairs = 0.0, 0
    for b in range(len(rewards)):
        for i in range(len(rewards[b])):
            for j in range(len(rewards[b])):
                if valid[b][i] and valid[b][j] and scores[b][i] > scores[b][j]:
                    pairs += 1
                    if rewards[b][i] == rewards[b][j]:
                        right += 0.5
                    elif rewards[b][i] > rewards[b][j]:
                        right += 1
    return right, pairs


def kl_rewards(scores, log_probs, ref_log_probs, mask, beta):
    out = np.zeros(np.shape(mask))
    for b in range(len(mask)):
        places = [t for t in range(len(mask[b])) if mask[b][t]]
        for t in places:
            out[b, t] = -beta * (float(log_probs[b][t]) - float(ref_log_probs[b][t]))
        if places:
            out[b, places[-1]] += float(scores[b])
    return out


def gae(rewards, values, mask, discount, gae_lambda):
    """Computes A_t = Σ_k (γλ)^k δ_(t+k), the definition, without recursion."""
    advantages, returns = np.zeros(np.shape(mask)), np.zeros(np.shape(mask))
    for b in range(len(mask)):
        length = sum(1 for m in mask[b] if m)
        value = [float(values[b][t]) for t in range(length)] + [0.0]
        delta = [float(rewards[b][t]) + discount * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            advantages[b, t] = sum((discount * gae_lambda) ** (k - t) * delta[k] for k in range(t, length))
            returns[b, t] = advantages[b, t] + value[t]
    return advantages, returns


def moments(x, mask):
    kept = [float(x[place]) for place in np.ndindex(*np.shape(x)) if mask[place]]
    if not kept:
        return 0.0, 0.0
    average = math.fsum(kept) / len(kept)
    return average, math.fsum((v - average) ** 2 for v in kept) / len(kept)


def whiten(x, mask, shift_mean=True):
    average, variance = moments(x, mask)
    out = np.zeros(np.shape(x))
    for place in np.ndindex(*np.shape(x)):
        if mask[place]:
            out[place] = (float(x[place]) - average) / math.sqrt(variance + 1e-8) + (0.0 if shift_mean else average)
    return out


def policy_loss(log_probs, old_log_probs, advantages, mask, clip):
    """Returns sums over tokens: loss, clipped tokens, approximate KL, number of tokens; and the largest |ρ - 1|."""
    loss = clipped = kl = tokens = largest = 0.0
    for place in np.ndindex(*np.shape(mask)):
        if not mask[place]:
            continue
        log_ratio = float(log_probs[place]) - float(old_log_probs[place])
        ratio, advantage = math.exp(log_ratio), float(advantages[place])
        outside = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
        bound = min(max(ratio, 1 - clip), 1 + clip)
        loss -= (bound if outside else ratio) * advantage
        clipped += outside and advantage != 0
        kl += log_ratio**2 / 2
        tokens += 1
        largest = max(largest, abs(ratio - 1))
    return loss, clipped, kl, tokens, largest


def value_loss(values, old_values, returns, mask, clip):
    """Returns sums over tokens: loss, clipped tokens, number of tokens."""
    loss = clipped = tokens = 0.0
    for place in np.ndindex(*np.shape(mask)):
        if not mask[place]:
            continue
        value, old, target = float(values[place]), float(old_values[place]), float(returns[place])
        near = min(max(value, old - clip), old + clip)
        loss += max((value - target) ** 2, (near - target) ** 2) / 2
        clipped += (near - target) ** 2 > (value - target) ** 2
        tokens += 1
    return loss, clipped, tokens


# Rankings.


@dataclasses.dataclass
class Naive:
    """Rankings with one row per answer: tokens, segments, positions [B, K, T]; scores, valid [B, K]."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


jax.tree_util.register_dataclass(Naive)


def naive(rankings, length, answers, prompts=None):
    """Pads rankings to `length` tokens, `answers` answers and `prompts` prompts."""
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
    """Computes rewards [B, K] with a forward pass for each answer, read at its last token."""
    rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (batch.tokens, batch.segments, batch.positions))
    outputs = model.apply({"params": params}, *rows)
    last = jax.numpy.maximum(rows[1].sum(axis=1) - 1, 0)
    return outputs[jax.numpy.arange(len(last)), last].reshape(batch.scores.shape)


def naive_loss(model):
    def loss(params, batch, key):
        rewards = naive_rewards(model, params, batch)
        accuracy = Mean(*losses.ranking_accuracy(rewards, batch.scores, batch.valid))
        return losses.ranking_loss(rewards, batch.scores, batch.valid), {"accuracy": accuracy}

    return loss


def packed(rows, *, length, prompts, answers, pad=0):
    """Returns a `RankingBatch` of rows, each a list of rankings."""
    shape = {"length": length, "max_prompts": prompts, "max_responses": answers, "pad_id": pad}
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(layouts.ranking_row(row, **shape) for row in rows))


def taken(array, rows):
    """Reorders numbers [B, S, K] of a packed batch to [n, K], in the order of the rankings; `rows` as in `packed`."""
    return np.concatenate([np.asarray(array)[b, : len(row)] for b, row in enumerate(rows)])
