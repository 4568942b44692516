"""Adam and the paper's learning-rate schedules."""

from __future__ import annotations

import jax
import ml_collections
import optax

from instructjax.models.lora import LORA_A, LORA_B
from instructjax.training.state import Params


def cosine_schedule(peak: float, steps: int, warmup_steps: int = 0, final_fraction: float = 0.1) -> optax.Schedule:
    """Builds a linear warm-up from 0, followed by a cosine from `peak` to `final_fraction * peak`.

    GPT-3 warms up; SFT and the reward model do not (appendices C.1 and C.2).

    Args:
      peak: the highest learning rate.
      steps: total number of updates, including the warm-up; after them the rate stays constant.
      warmup_steps: number of updates until the peak.
      final_fraction: the end of the cosine as a share of the peak; 0.1 in the paper.
    """
    cosine = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1), alpha=final_fraction)
    if not warmup_steps:
        return cosine
    # Start one step in, so that the first update is not wasted on a rate of 0.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([warmup, cosine], [warmup_steps])


def constant_schedule(peak: float, warmup_steps: int, initial_fraction: float = 0.1) -> optax.Schedule:
    """Builds a linear warm-up from `initial_fraction * peak` to `peak`, then constant (appendix C.4).

    Args:
      peak: the learning rate after the warm-up.
      warmup_steps: number of updates until the peak; for PPO, all minibatches of 10 iterations.
      initial_fraction: the first rate as a share of the peak; 0.1 in the paper.
    """
    if not warmup_steps:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(initial_fraction * peak, peak, warmup_steps)


def adam(
    config: ml_collections.ConfigDict, schedule: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """Builds Adam with the paper's betas, a global-norm clip, and weight decay on matrices.

    Args:
      config: the `optimizer` section of a recipe.
      schedule: the learning rate of each update.
      weight_decay: decoupled, multiplied by the learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            mu_dtype=config.first_moment_dtype or None,
            weight_decay=weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: Params) -> Params:
    """Returns a tree that is True on matrices, adapters included, and False on biases and layer-norm scales.

    The blocks' parameters are stacked over layers, so leaves are recognized by name, not by
    rank.
    """
    ends = ("kernel", "embedding", LORA_A, LORA_B)
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith(ends), params)
