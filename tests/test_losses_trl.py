"""Parity of the PPO equations with another implementation, on numbers from a file."""

import ast
import functools
import math

import jax
import numpy as np
import pytest

from instructjax import losses
from tests import local_data


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["k1", "k3", "whiten_rewards", "penalty", "full_length", "gamma"])
def test_parity_with_trl(name):
    """TRL 1.12's PPO on fixed numbers: `ppo_case_NAME.npz` with arrays in_* and out_*, and its settings.

    Where the two differ on purpose, TRL's convention is applied here, by hand, before comparing:
    - TRL puts the score one place after EOS, and lets value and return be real there;
      here both end with the last token, as the paper's episode does.
    - TRL's variance is unbiased, n - 1; here it is divided by n, as in the authors'
      earlier code.
    - TRL offers the k3 estimator of KL; the paper's reward is log π - log π_ref (k1).
    - TRL can whiten rewards and fine a missing EOS inside; here the caller does.
    """
    path = local_data.TRL_PARITY / f"ppo_case_{name}.npz"
    if not path.is_file():
        pytest.skip(local_data.ABSENT)
    case = {key: np.asarray(x, np.float64) if x.dtype == np.float32 else x for key, x in np.load(path).items()}
    setting = ast.literal_eval(str(case["cfg"][0]))
    log_probs, values, scores = case["in_logprobs"], case["in_values"], case["out_scores_after_penalty"]
    mask, wider_mask = ~case["out_padding_mask"], ~case["out_padding_mask_p1"]
    agree = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)  # TRL computed in float32

    if setting["kl_estimator"] == "k1":
        kl_rewards = functools.partial(losses.kl_rewards, beta=setting["kl_coef"], mask=mask)
        penalty = kl_rewards(np.zeros_like(scores), log_probs, case["in_ref_logprobs"])
        agree(penalty, case["out_non_score_reward"])
        if not setting["whiten_rewards"]:
            rewards = kl_rewards(scores, log_probs, case["in_ref_logprobs"])
            agree(rewards.sum(1), case["out_rewards"].sum(1))
            full = case["out_actual_end"] == case["out_sequence_lengths"]  # no place after the last token
            agree(rewards[full], case["out_rewards"][full])
        else:
            at_end = np.arange(mask.shape[1]) == case["out_actual_end"][:, None]
            raw = penalty + at_end * scores[:, None]
            mean, _ = losses.masked_moments(raw, wider_mask)
            unbiased = math.sqrt(1 - 1 / wider_mask.sum())
            whitened = losses.whiten(raw, wider_mask, shift_mean=False)
            agree(np.where(wider_mask, (whitened - mean) * unbiased + mean, 0), case["out_rewards"])

    advantages, returns = losses.gae(case["out_rewards"], values, wider_mask, setting["gamma"], setting["lam"])
    agree(advantages, case["out_raw_advantages"])
    agree(returns, case["out_returns"])
    agree(losses.whiten(advantages, mask) * math.sqrt(1 - 1 / mask.sum()), case["out_advantages"])

    pair, _ = losses.policy_loss(case["in_new_logprobs"], log_probs, case["out_advantages"], mask, setting["cliprange"])
    agree(losses.mean(*pair), case["out_pg_loss"])
    pair, metrics = losses.value_loss(
        case["in_vpred"], values, case["out_returns"], wider_mask, setting["cliprange_value"]
    )
    agree(losses.mean(*pair), case["out_vf_loss"])
    agree(losses.mean(*metrics["clip_fraction"]), case["out_vf_clipfrac"])
