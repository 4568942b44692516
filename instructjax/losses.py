"""Every equation of the paper: arrays in, sums out.

The paper is Ouyang et al. 2022, "Training language models to follow instructions
with human feedback". The letters in shapes are those of `typing.py`.

A loss or metric is a pair (sum, weight), and its value is sum / weight. Both are
summed over microbatches and devices first; then `mean` divides once. With ragged
masks a mean of means would be a different number.

Integers, bool and bfloat16 are computed in float32; float64 stays float64. Masks
and weights may be bool or numbers. Values where a mask is 0 are never read: even
NaN there reaches neither the result nor the gradient.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Num, Shaped

from instructjax.typing import AnyArray, Array, Scalar, Tree

Pair: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]  # (sum, weight)
AxisName: TypeAlias = str | tuple[str, ...] | None


# Pairs.


def masked_sum(x: Shaped[AnyArray, "*shape"], mask: Shaped[AnyArray, "*shape"]) -> Pair:
    """Computes the pair of a weighted mean: (Σ mask · x, Σ mask).

    Args:
      x: numbers or bool.
      mask: nonnegative weights.
    """
    _same_shape(x=x, mask=mask)
    x = _float(x)
    mask = jnp.asarray(mask).astype(x.dtype)
    return jnp.sum(_where(mask, x) * mask), jnp.sum(mask)


def mean(total: Tree, weight: Scalar) -> Tree:
    """Divides a sum by its weight; the mean is 0 if the weight is 0.

    Args:
      total: a sum, its gradient, or a pytree of these, already summed over
        microbatches and devices. A weight does not depend on the parameters, so
        the gradient of a mean is the mean of the gradient.
      weight: summed over the same.
    """
    return jax.tree.map(lambda leaf: leaf / jnp.where(weight > 0, weight, 1), total)


# Language modeling.


def log_probs(logits: Num[AnyArray, "*shape V"], tokens: Int[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """Computes log-probabilities of given tokens, in nats: log π(token) = z_token - log Σ_v exp z_v.

    Args:
      logits: z.
      tokens: a token outside the vocabulary yields NaN.
    """
    _same_shape(**{"logits without its last axis": logits[..., 0], "tokens": tokens})
    shifted = _shifted(logits)
    chosen = jnp.take_along_axis(shifted, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return chosen - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def entropy(logits: Num[AnyArray, "*shape V"]) -> Float[Array, "*shape"]:
    """Computes the entropy of the next token, in nats: H = -Σ_v π_v log π_v, where 0 log 0 = 0.

    Args:
      logits: -inf for a token that cannot occur.
    """
    shifted = _shifted(logits)
    log_pi = shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    pi = jnp.exp(log_pi)
    return -jnp.sum(pi * _where(pi, log_pi), axis=-1)


def is_most_likely(logits: Num[AnyArray, "*shape V"], tokens: Int[AnyArray, "*shape"]) -> Bool[Array, "*shape"]:
    """Returns whether a given token is the most likely one. Takes the arguments of `log_probs`."""
    _same_shape(**{"logits without its last axis": logits[..., 0], "tokens": tokens})
    return jnp.argmax(logits, axis=-1) == tokens


def cross_entropy(log_probs: Num[AnyArray, "*shape"], weights: Shaped[AnyArray, "*shape"]) -> Pair:
    """Computes the loss of pretraining, SFT and the ptx term: (Σ -w log π(token), Σ w), over tokens.

    Args:
      log_probs: log π.
      weights: w.
    """
    return masked_sum(-_float(log_probs), weights)


# The reward model.


def ranking_loss(rewards: Num[AnyArray, "B K"], scores: Num[AnyArray, "B K"], valid: Shaped[AnyArray, "B K"]) -> Pair:
    """Computes the loss of the reward model (section 3.5, equation 1; appendix C.2).

    For each prompt, summed over the pairs (w, l) in which answer w is preferred to l:

      -1/C(K, 2) Σ_(w,l) log σ(r_w - r_l)

    The pair is (the sum over prompts, the number of prompts). As in the paper, ties
    are dropped from the sum, but C(K, 2) counts all pairs. So a prompt with many ties
    weighs less than one without, and K does not change a prompt's weight. K is the
    number of the prompt's valid answers. A prompt without a preference has weight 0.

    Args:
      rewards: r, from the model.
      scores: from the labeler; higher is better, equal is a tie.
      valid: 0 where a prompt has fewer than K answers.
    """
    margins, preferred = _comparisons(rewards, scores, valid)
    losses = jnp.sum(_where(preferred, jax.nn.softplus(-margins)), axis=(1, 2))
    answers = jnp.sum(jnp.asarray(valid) > 0, axis=1)
    pairs = answers * (answers - 1) // 2
    return masked_sum(losses / jnp.maximum(pairs, 1), preferred.any(axis=(1, 2)))


def ranking_accuracy(
    rewards: Num[AnyArray, "B K"], scores: Num[AnyArray, "B K"], valid: Shaped[AnyArray, "B K"]
) -> Pair:
    """Computes how often the reward model prefers what the labeler prefers (appendix E.2).

    The pair is (number of comparisons ranked correctly, number of comparisons). The
    labeler's ties are not counted. Equal rewards count as one half, like a guess.
    Takes the arguments of `ranking_loss`.
    """
    margins, preferred = _comparisons(rewards, scores, valid)
    return masked_sum(jnp.heaviside(margins, 0.5), preferred)


# Reinforcement learning: from scores to advantages, on whole batches.


def kl_rewards(
    scores: Num[AnyArray, "B"],
    log_probs: Num[AnyArray, "B R"],
    ref_log_probs: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    beta: Scalar,
) -> Float[Array, "B R"]:
    """Computes the rewards of the tokens of a response (section 3.5, equation 2).

      r_t = -β (log π(a_t) - log π_ref(a_t)) + [t is the last token] score

    The paper's r_θ(x, y) is the score and its π^SFT is π_ref. The sum over t is the
    paper's reward of an episode. A response without tokens has rewards 0.

    Args:
      scores: of the reward model.
      log_probs: log π, of the policy that sampled the tokens.
      ref_log_probs: log π_ref, of the policy at the start.
      mask: 1 on the tokens of the response.
      beta: β, the KL coefficient; 0.02 in the paper.

    Returns:
      r, 0 outside the mask.
    """
    _same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    _same_shape(**{"scores": scores, "log_probs[:, 0]": log_probs[:, 0]})
    taken = jnp.asarray(mask) > 0
    last = taken & (lax.cumsum(taken.astype(jnp.int32), axis=1, reverse=True) == 1)
    penalty = beta * _where(mask, _float(ref_log_probs) - _float(log_probs))
    return penalty + jnp.where(last, _float(scores)[:, None], 0)


def adapted_kl_coefficient(beta: Scalar, kl: Scalar, target: Scalar, share: Scalar) -> Scalar:
    """Computes the next KL coefficient of an adaptive controller (Ziegler et al. 2019, section 2.2).

      e = clip(KL / target - 1, -0.2, 0.2)
      β' = β (1 + e · share)

    The paper has a fixed coefficient.

    Args:
      beta: β.
      kl: the mean KL of a batch of episodes, in nats.
      target: the KL to keep, in nats.
      share: the number of episodes in the batch divided by the horizon, 10,000 episodes in the authors' earlier code.
    """
    return beta * (1 + jnp.clip(kl / target - 1, -0.2, 0.2) * share)


def kl_estimates(
    log_probs: Num[AnyArray, "B R"], ref_log_probs: Num[AnyArray, "B R"], mask: Shaped[AnyArray, "B R"]
) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Computes three estimates of KL(π, π_ref) from samples of π, in nats per episode (Schulman 2020).

      k1 = Σ_t log ρ_t,  k2 = Σ_t ½ (log ρ_t)²,  k3 = Σ_t (1 / ρ_t - 1 + log ρ_t),  with ρ = π / π_ref

    k1 and k3 are unbiased; k2 and k3 are never negative. The log-ratios of k3 are clipped to ±20, so that a single
    token cannot overflow.

    Args:
      log_probs: log π, of the policy that sampled the tokens.
      ref_log_probs: log π_ref.
      mask: 1 on the tokens of the response.
    """
    _same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    ratio = _where(mask, _float(log_probs) - _float(ref_log_probs))
    near = jnp.clip(ratio, -20, 20)
    k2, k3 = 0.5 * jnp.square(ratio), jnp.expm1(-near) + near
    return ratio.sum(axis=1), k2.sum(axis=1), k3.sum(axis=1)


def gae(
    rewards: Num[AnyArray, "B R"],
    values: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    discount: Scalar,
    gae_lambda: Scalar,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Computes generalized advantage estimates (Schulman et al. 2016, equation 16).

      δ_t = r_t + γ V_t+1 - V_t
      A_t = δ_t + γλ A_t+1

    where V and A are 0 after the last token: the episode ends there.

    Args:
      rewards: r.
      values: V; V_t is the value before token t is taken.
      mask: 1 on the tokens of the response, which start at the left.
      discount: γ; 1 in the paper (appendix C.4).
      gae_lambda: λ; not in the paper, 0.95 in the authors' earlier code.

    Returns:
      advantages: A, 0 outside the mask.
      returns: A + V, the targets of the value function.
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    rewards, values = _where(mask, _float(rewards)), _where(mask, _float(values))
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + discount * next_values - values

    def step(advantage: Array, delta: Array) -> tuple[Array, Array]:
        advantage = delta + discount * gae_lambda * advantage
        return advantage, advantage

    _, advantages = lax.scan(step, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    return advantages.T, advantages.T + values


def masked_moments(
    x: Shaped[AnyArray, "*shape"], mask: Shaped[AnyArray, "*shape"], axis_name: AxisName = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes mean and variance: μ = Σ m x / Σ m, σ² = Σ m (x - μ)² / Σ m. Both are 0 on an empty mask.

    Args:
      x: numbers or bool.
      mask: m.
      axis_name: name of a mapped axis (of pmap, shard_map or vmap) over which the
        batch is split; the moments are those of the whole batch.
    """
    average = _mean_over(x, mask, axis_name)
    return average, _mean_over(jnp.square(_where(mask, _float(x)) - average), mask, axis_name)


def whiten(
    x: Num[AnyArray, "B R"], mask: Shaped[AnyArray, "B R"], axis_name: AxisName = None, shift_mean: bool = True
) -> Float[Array, "B R"]:
    """Scales to variance 1 over the whole batch: (x - μ) / √(σ² + 1e-8), plus μ if not shift_mean.

    This follows the authors' earlier code (Ziegler et al. 2019): advantages are shifted
    to mean 0, rewards keep their mean. The paper does not mention it.

    Args:
      x: advantages or rewards.
      mask: 1 on the tokens of the response.
      axis_name: as in `masked_moments`.
      shift_mean: whether the result has mean 0; otherwise it keeps its mean.

    Returns:
      The scaled numbers, 0 outside the mask.
    """
    average, variance = masked_moments(x, mask, axis_name)
    scaled = (_where(mask, _float(x)) - average) * lax.rsqrt(variance + 1e-8)
    return _where(mask, scaled if shift_mean else scaled + average)


def explained_variance(
    values: Num[AnyArray, "B R"],
    returns: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Computes how much of the returns the values predict: 1 - Var(returns - V) / Var(returns).

    1 is perfect, and 0 is no better than a constant. It is also 0 if the returns are constant.

    Args:
      values: V, of the rollout.
      returns: the targets of the value function.
      mask: 1 on the tokens of the response.
      axis_name: as in `masked_moments`.
    """
    _same_shape(values=values, returns=returns, mask=mask)
    _, residual = masked_moments(_float(returns) - _float(values), mask, axis_name)
    _, total = masked_moments(returns, mask, axis_name)
    return jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1), 0)


# Reinforcement learning: the losses of a minibatch.


def policy_loss(
    log_probs: Num[AnyArray, "B R"],
    old_log_probs: Num[AnyArray, "B R"],
    advantages: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    clip: Scalar,
) -> tuple[Pair, dict[str, Pair]]:
    """Computes PPO's clipped loss of the policy (Schulman et al. 2017, equation 7, as a loss).

      ρ_t = π(a_t) / π_old(a_t)
      max(-ρ_t A_t, -clip(ρ_t, 1 - ε, 1 + ε) A_t)

    No gradient flows into old_log_probs or advantages.

    Args:
      log_probs: log π.
      old_log_probs: log π_old, of the policy that sampled the tokens.
      advantages: A.
      mask: 1 on the tokens of the response.
      clip: ε; 0.2 in the paper (appendix C.4).

    Returns:
      The loss over tokens, and metrics over the same tokens:
        clip_fraction: share of tokens whose gradient the clip removed.
        approx_kl: ½ (log ρ_t)², an estimate of KL(π_old, π), never negative.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, mask=mask)
    log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    ratio = jnp.exp(log_ratio)
    advantages = lax.stop_gradient(_where(mask, _float(advantages)))
    plain = -ratio * advantages
    clipped = -jnp.clip(ratio, 1 - clip, 1 + clip) * advantages
    metrics = {
        "clip_fraction": masked_sum(clipped > plain, mask),
        "approx_kl": masked_sum(0.5 * jnp.square(log_ratio), mask),
    }
    return masked_sum(jnp.maximum(plain, clipped), mask), metrics


def importance_weights(
    log_probs: Num[AnyArray, "B R"],
    sampler_log_probs: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    most: Scalar,
) -> Float[Array, "B R"]:
    """Computes truncated importance weights of tokens, as factors of their advantages: min(π(a_t) / μ(a_t), C).

    They correct for a sampler whose distribution μ is not the policy π that the update starts from (Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training", https://fengyao.notion.site/off-policy-rl).
    No gradient flows through them. Outside the mask they are 1.

    Args:
      log_probs: log π.
      sampler_log_probs: log μ.
      mask: 1 on the tokens of the response.
      most: C, above 0, which bounds the variance.
    """
    _same_shape(log_probs=log_probs, sampler_log_probs=sampler_log_probs, mask=mask)
    log_ratio = lax.stop_gradient(_log_ratio(log_probs, sampler_log_probs, mask))
    return jnp.exp(jnp.minimum(log_ratio, jnp.log(most)))


def ratio_deviation(
    log_probs: Num[AnyArray, "B R"], old_log_probs: Num[AnyArray, "B R"], mask: Shaped[AnyArray, "B R"]
) -> Float[Array, ""]:
    """Computes the largest |ρ_t - 1| of the tokens in the mask, 0 on an empty mask.

    It is 0, up to rounding, at the first minibatch of an iteration; otherwise sampling
    and update disagree about the policy. Reduce it over microbatches and devices with a
    maximum, not a sum. Takes the arguments of `policy_loss`.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return jnp.max(jnp.abs(jnp.expm1(_log_ratio(log_probs, old_log_probs, mask))))


def value_loss(
    values: Num[AnyArray, "B R"],
    old_values: Num[AnyArray, "B R"],
    returns: Num[AnyArray, "B R"],
    mask: Shaped[AnyArray, "B R"],
    clip: Scalar,
) -> tuple[Pair, dict[str, Pair]]:
    """Computes the loss of the value function, clipped around the old values.

      ½ max((V - G)², (clip(V, V_old - ε, V_old + ε) - G)²)

    This follows the authors' earlier code (Ziegler et al. 2019); the paper does not
    give a value loss. No gradient flows into old_values or returns.

    Args:
      values: V.
      old_values: V_old, of the rollout.
      returns: G.
      mask: 1 on the tokens of the response.
      clip: ε, in units of reward; infinity disables clipping.

    Returns:
      The loss over tokens, and metrics over the same tokens:
        clip_fraction: share of tokens whose gradient the clip removed.
    """
    _same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    values = _where(mask, _float(values))
    old_values = lax.stop_gradient(_where(mask, _float(old_values)))
    returns = lax.stop_gradient(_where(mask, _float(returns)))
    plain = jnp.square(values - returns)
    clipped = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns)
    return masked_sum(0.5 * jnp.maximum(plain, clipped), mask), {"clip_fraction": masked_sum(clipped > plain, mask)}


def ppo_ptx(policy: tuple[Tree, Scalar], pretraining: tuple[Tree, Scalar], gamma: Scalar) -> Tree:
    """Mixes pretraining into the objective of the policy (section 3.5, equation 2; appendix C.4).

      L = Σ L_ppo / W_ppo + γ Σ L_ptx / W_ptx

    L_ppo is `policy_loss` and L_ptx is the `cross_entropy` of pretraining text. The
    two are computed separately, so each comes as a sum over its own tokens with its
    own weight. The equation is linear: it holds for the sums, for their gradients, and
    for a pytree of both. The paper gives γ, but does not say whether each term is a
    sum or a mean over tokens. Here each is a mean, so γ does not depend on the number
    of tokens.

    Args:
      policy: (Σ L_ppo or its gradient, W_ppo), summed over microbatches and devices.
      pretraining: (Σ L_ptx or its gradient, W_ptx), likewise, of the same structure.
      gamma: γ; 27.8 in the paper's PPO-ptx, 0 in its PPO.

    Returns:
      L or its gradient, of the same structure.
    """
    return jax.tree.map(lambda ppo, ptx: ppo + gamma * ptx, mean(*policy), mean(*pretraining))


def _float(x: AnyArray) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _where(mask: AnyArray, x: AnyArray) -> Array:
    """Returns x where the mask is set, else 0. Multiplying by 0 would let NaN and infinity through."""
    return jnp.where(jnp.asarray(mask) > 0, x, 0)


def _shifted(logits: AnyArray) -> Array:
    """Subtracts the maximum from logits: the same distribution, without overflow."""
    logits = _float(logits)
    return logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))


def _log_ratio(log_probs: AnyArray, old_log_probs: AnyArray, mask: AnyArray) -> Array:
    return _where(mask, _float(log_probs) - lax.stop_gradient(_float(old_log_probs)))


def _comparisons(
    rewards: AnyArray, scores: AnyArray, valid: AnyArray
) -> tuple[Float[Array, "B K K"], Bool[Array, "B K K"]]:
    """Returns r_w - r_l, and whether the labeler prefers w to l. Each untied pair appears once."""
    _same_shape(rewards=rewards, scores=scores, valid=valid)
    rewards, scores, valid = _float(rewards), jnp.asarray(scores), jnp.asarray(valid) > 0
    preferred = (scores[:, :, None] > scores[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    return _where(preferred, rewards[:, :, None] - rewards[:, None, :]), preferred


def _mean_over(x: AnyArray, mask: AnyArray, axis_name: AxisName) -> Array:
    total, weight = masked_sum(x, mask)
    if axis_name is not None:
        total, weight = lax.psum((total, weight), axis_name)
    return mean(total, weight)


def _same_shape(**arrays: AnyArray) -> None:
    """Raises an error if the shapes differ: JAX would silently broadcast a mask or a score."""
    if len({jnp.shape(array) for array in arrays.values()}) > 1:
        found = ", ".join(f"{name} {jnp.shape(array)}" for name, array in arrays.items())
        raise ValueError(f"expected arrays of one shape, found {found}")
