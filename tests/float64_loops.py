"""The equations of `instructjax.losses` once more, as slow loops over Python floats.

Written from the formulas, one number at a time, so that a mistake of broadcasting,
of axes, of precision or of reversal in the fast version cannot be here too.
Arguments are NumPy arrays; sums are float64.
"""

import math

import numpy as np


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
        losses, pairs = [], 0
        for i in range(len(rewards[b])):
            for j in range(i + 1, len(rewards[b])):
                if not (valid[b][i] and valid[b][j]):
                    continue
                pairs += 1
                if scores[b][i] == scores[b][j]:
                    continue
                winner, loser = (i, j) if scores[b][i] > scores[b][j] else (j, i)
                margin = float(rewards[b][winner]) - float(rewards[b][loser])
                losses.append(max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))))
        if losses:
            total += sum(losses) / pairs
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
    """A_t = Σ_k (γλ)^k δ_(t+k), the definition that the recursion sums up."""
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
