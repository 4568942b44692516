"""Parity with the formulas of the authors' earlier code, openai/lm-human-preferences (Ziegler et al. 2019).

The formulas are written from its description, one number at a time in float64. There, all responses
have the same length, so nothing is masked, and each update whitens one minibatch of one process.
"""

import math

import jax
import numpy as np
import pytest

from instructjax import losses

BETA, GAMMA, LAMBDA, CLIP, CLIP_VALUE = 0.15, 1.0, 0.95, 0.2, 0.2
BOUND = 1e-12


def whitened(rows, keep_mean):
    numbers = [x for row in rows for x in row]
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)
    return [[(x - mean) / math.sqrt(variance + 1e-8) + (mean if keep_mean else 0.0) for x in row] for row in rows]


def theirs(case, whiten_rewards):
    """Computes rewards, advantages (before and after whitening), returns, both losses and their clipped tokens."""
    count, length = case["values"].shape
    places = [(b, t) for b in range(count) for t in range(length)]
    rewards = [
        [-BETA * (case["log_probs"][b, t] - case["ref_log_probs"][b, t]) for t in range(length)] for b in range(count)
    ]
    for b in range(count):
        rewards[b][length - 1] += case["scores"][b]
    if whiten_rewards:
        rewards = whitened(rewards, keep_mean=True)

    def surprise(b, t):
        following = case["values"][b, t + 1] if t + 1 < length else 0.0
        return rewards[b][t] + GAMMA * following - case["values"][b, t]

    raw = [
        [math.fsum((GAMMA * LAMBDA) ** (k - t) * surprise(b, k) for k in range(t, length)) for t in range(length)]
        for b in range(count)
    ]
    advantages = whitened(raw, keep_mean=False)
    policy, value, policy_clips, value_clips = [], [], 0, 0
    for b, t in places:
        ratio = math.exp(case["new_log_probs"][b, t] - case["log_probs"][b, t])
        near = min(max(ratio, 1 - CLIP), 1 + CLIP)
        policy.append(max(-advantages[b][t] * ratio, -advantages[b][t] * near))
        policy_clips += -advantages[b][t] * near > -advantages[b][t] * ratio
        old, new, target = case["values"][b, t], case["new_values"][b, t], raw[b][t] + case["values"][b, t]
        near = min(max(new, old - CLIP_VALUE), old + CLIP_VALUE)
        value.append(0.5 * max((new - target) ** 2, (near - target) ** 2))
        value_clips += (near - target) ** 2 > (new - target) ** 2
    return {
        "rewards": rewards,
        "advantages": raw,
        "advantages, whitened": advantages,
        "returns": raw + case["values"],
        "policy loss": math.fsum(policy) / len(places),
        "policy clips": policy_clips,
        "value loss": math.fsum(value) / len(places),
        "value clips": value_clips,
    }


def ours(case, whiten_rewards):
    mask = np.ones_like(case["values"])
    rewards = losses.kl_rewards(case["scores"], case["log_probs"], case["ref_log_probs"], mask, BETA)
    if whiten_rewards:
        rewards = losses.whiten(rewards, mask, shift_mean=False)
    raw, returns = losses.gae(rewards, case["values"], mask, GAMMA, LAMBDA)
    advantages = losses.whiten(raw, mask)
    policy, policy_metrics = losses.policy_loss(case["new_log_probs"], case["log_probs"], advantages, mask, CLIP)
    value, value_metrics = losses.value_loss(case["new_values"], case["values"], returns, mask, CLIP_VALUE)
    return {
        "rewards": rewards,
        "advantages": raw,
        "advantages, whitened": advantages,
        "returns": returns,
        "policy loss": losses.mean(*policy),
        "policy clips": policy_metrics["clip_fraction"][0],
        "value loss": losses.mean(*value),
        "value clips": value_metrics["clip_fraction"][0],
    }


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_quantity_of_ppo(seed, whiten_rewards):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(2, 13)))
    log_probs, values = -2 + 0.3 * rng.normal(size=shape), rng.normal(size=shape)
    case = {
        "log_probs": log_probs,
        "ref_log_probs": log_probs + 0.2 * rng.normal(size=shape),
        "new_log_probs": log_probs + 0.25 * rng.normal(size=shape),
        "values": values,
        "new_values": values + 0.4 * rng.normal(size=shape),
        "scores": rng.normal(size=shape[0]),
    }
    with jax.enable_x64(True):
        found = {name: np.asarray(x) for name, x in ours(case, whiten_rewards).items()}
    expected = theirs(case, whiten_rewards)
    assert 0 < expected["policy clips"] < values.size and 0 < expected["value clips"] < values.size
    print(f"largest difference {max(np.abs(found[name] - expected[name]).max() for name in found):.1e}", end=" ")
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=BOUND, atol=BOUND, err_msg=name)
