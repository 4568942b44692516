"""Parity with the formulas of the authors' earlier code, openai/lm-human-preferences (Ziegler et al. 2019).

Its responses are all of one length, so nothing there is masked. Written from the published formulas.
"""

import jax
import numpy as np
import pytest

from instructjax import losses

BETA, GAMMA, LAMBDA, CLIP, CLIP_VALUE = 0.15, 1.0, 0.95, 0.2, 0.2


def whitened(x, shift_mean=True):
    result = (x - x.mean()) / np.sqrt(x.var() + 1e-8)
    return result if shift_mean else result + x.mean()


def theirs(case):
    """Rewards, advantages, returns and both losses."""
    rewards = -BETA * (case["log_probs"] - case["ref_log_probs"])
    rewards[:, -1] += case["scores"]
    values, length = case["values"], rewards.shape[1]
    advantages, last = np.zeros_like(rewards), 0.0
    for t in reversed(range(length)):
        following = values[:, t + 1] if t < length - 1 else 0.0
        last = rewards[:, t] + GAMMA * following - values[:, t] + GAMMA * LAMBDA * last
        advantages[:, t] = last
    returns = advantages + values
    advantages = whitened(advantages)
    ratio = np.exp(case["new_log_probs"] - case["log_probs"])
    policy = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 1 - CLIP, 1 + CLIP)).mean()
    clipped = np.clip(case["new_values"], values - CLIP_VALUE, values + CLIP_VALUE)
    value = 0.5 * np.maximum((case["new_values"] - returns) ** 2, (clipped - returns) ** 2).mean()
    return {
        "rewards": rewards,
        "rewards, whitened": whitened(rewards, shift_mean=False),
        "advantages": advantages,
        "returns": returns,
        "policy loss": policy,
        "value loss": value,
    }


def ours(case):
    mask = np.ones_like(case["values"])
    rewards = losses.kl_rewards(case["scores"], case["log_probs"], case["ref_log_probs"], mask, BETA)
    advantages, returns = losses.gae(rewards, case["values"], mask, GAMMA, LAMBDA)
    advantages = losses.whiten(advantages, mask)
    policy, _ = losses.policy_loss(case["new_log_probs"], case["log_probs"], advantages, mask, CLIP)
    value, _ = losses.value_loss(case["new_values"], case["values"], returns, mask, CLIP_VALUE)
    return {
        "rewards": rewards,
        "rewards, whitened": losses.whiten(rewards, mask, shift_mean=False),
        "advantages": advantages,
        "returns": returns,
        "policy loss": losses.mean(*policy),
        "value loss": losses.mean(*value),
    }


@pytest.mark.parametrize("seed", range(5))
def test_every_quantity_of_ppo(seed):
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
        found = ours(case)
    for name, expected in theirs(case).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-7, err_msg=name)
