"""The advantage estimators of PPO, RLOO and GRPO: how much better a response was than expected.

PPO asks a critic what to expect at each token. RLOO and GRPO sample a prompt several times
and compare its responses with each other; all tokens of a response share one advantage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from instructjax import losses
from instructjax.training.rows import gather_rows

Array = jax.Array
AxisName = str | None
EPSILON = 1e-6  # added to a standard deviation


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An advantage estimator, and what it needs.

    Attributes:
      estimate: `estimate(rewards, mask, values, group, axis_name) -> (advantages, returns)`. Rewards, mask and
        values are [B, R]; `group` [B] is the prompt that a row answers. Values and returns are None without a critic.
      needs_critic: whether it reads values.
      needs_groups: whether it compares the responses to a prompt, and so needs two or more.
    """

    estimate: Callable[[Array, Array, Any, Array, AxisName], tuple[Array, Array | None]]
    needs_critic: bool = False
    needs_groups: bool = False


def gae(discount: float, gae_lambda: float) -> Estimator:
    """Builds PPO's estimator: `losses.gae`, then whitened over the whole batch (appendix C.4).

    Args:
      discount: γ; 1 in the paper.
      gae_lambda: λ; 0.95 in the authors' earlier code.
    """

    def estimate(rewards: Array, mask: Array, values: Array, group: Array, axis_name: AxisName) -> tuple[Array, Array]:
        del group
        advantages, returns = losses.gae(rewards, values, mask, discount, gae_lambda)
        return losses.whiten(advantages, mask, axis_name=axis_name), returns

    return Estimator(estimate, needs_critic=True)


def per_response(compare: Callable[[Array, Array, AxisName], Array]) -> Estimator:
    """Builds an estimator that gives all tokens of a response one advantage.

    Args:
      compare: `leave_one_out` or `group_relative`, applied to each response's total reward: the score minus
        the KL penalties of its tokens, the paper's reward of an episode (section 3.5, equation 2).
    """

    def estimate(rewards: Array, mask: Array, values: None, group: Array, axis_name: AxisName) -> tuple[Array, None]:
        del values
        total = jnp.where(mask > 0, rewards, 0).sum(axis=1)
        return compare(total, group, axis_name)[:, None] * mask, None

    return Estimator(estimate, needs_groups=True)


def named(section: ml_collections.ConfigDict) -> Estimator:
    """Returns the estimator that the key `advantages` of a section names.

    Args:
      section: the section `ppo` of a recipe, or one with the same keys.
    """
    if section.advantages == "gae":
        return gae(section.discount, section.gae_lambda)
    return per_response({"rloo": leave_one_out, "grpo": group_relative}[section.advantages])


def leave_one_out(rewards: Array, group: Array, axis_name: AxisName = None) -> Array:
    """Computes RLOO's advantages (Ahmadian et al. 2024, "Back to Basics", section 2; Kool et al. 2019).

      A_i = r_i - 1 / (K - 1) Σ_{j ≠ i} r_j = 1 / (K - 1) Σ_j (r_i - r_j)

    The baseline of a response is the mean reward of the other responses to its prompt. It does not depend on the
    response, so the gradient stays unbiased.

    Args:
      rewards: r, [B], of whole responses.
      group: [B] int, equal for responses to one prompt; they may lie in any rows, on any devices.
      axis_name: the mapped axis over which the rows are split, if any.

    Returns:
      A, [B]; 0 for a response without another to compare with (K = 1).
    """
    same, others = _peers(rewards, group, axis_name)
    # A sum of differences is exactly 0 if all rewards are equal.
    gaps = jnp.where(same, rewards[:, None] - others, 0)
    return gaps.sum(axis=1) / jnp.maximum(same.sum(axis=1) - 1, 1)


def group_relative(rewards: Array, group: Array, axis_name: AxisName = None) -> Array:
    """Computes GRPO's advantages with outcome supervision (Shao et al. 2024, "DeepSeekMath", section 4.1.2).

      A_i = (r_i - mean(r)) / (std(r) + 1e-6), over the K responses to a prompt

    The standard deviation divides by K. Of the published variants this is the one with the standard deviation and
    with a mean over all tokens of a minibatch in the loss, as in DAPO (Yu et al. 2025, arXiv 2503.14476, section 3.3).
    Shao et al. take the mean over the tokens of each response first, which weighs tokens of short responses more. They
    put the KL penalty into the loss; here it is in the reward, as in InstructGPT. Without the standard deviation
    (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783) the advantages would be `leave_one_out` times (K - 1) / K.
    Arguments and return value are those of `leave_one_out`.
    """
    same, others = _peers(rewards, group, axis_name)
    size = same.sum(axis=1)
    deviations = jnp.where(same, rewards[:, None] - others, 0).sum(axis=1) / size
    _, of_others = _peers(deviations, group, axis_name)
    variance = jnp.where(same, jnp.square(of_others), 0).sum(axis=1) / size
    return deviations / (jnp.sqrt(variance) + EPSILON)


def _peers(x: Array, group: Array, axis_name: AxisName) -> tuple[Array, Array]:
    """Returns which of all N rows are in each row's group, [B, N], and x of all rows, [N]."""
    # Sums over [B, N] instead of a scatter, whose order of addition varies on GPUs.
    others, groups = gather_rows((x, group), axis_name)
    return group[:, None] == groups, others
