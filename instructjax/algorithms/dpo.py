"""DPO (Rafailov et al. 2023, arXiv 2305.18290) on all pairs of a prompt's answers."""

from __future__ import annotations

import functools

import jax

from instructjax import losses
from instructjax.batch import RankingBatch
from instructjax.models.transformer import LanguageModel
from instructjax.training import objectives
from instructjax.training.metrics import Mean, Metrics
from instructjax.training.state import Params

Array = jax.Array


def implicit_rewards(
    model: LanguageModel, params: Params, reference: Params, batch: RankingBatch, beta: float
) -> Array:
    """Computes the implicit rewards r(x, y) = β log(π(y|x) / π_ref(y|x)), [B, S, K] (equation 5).

    Args:
      model: the model of both policy and reference.
      params: the policy's weights.
      reference: the reference policy's weights.
      batch: prompts with their answers.
      beta: β, the weight of the KL divergence from the reference.
    """
    log_prob = functools.partial(objectives.answer_log_probs, model, batch=batch)
    return beta * (log_prob(params) - log_prob(reference))


def dpo_loss(
    params: Params, batch: RankingBatch, key: Array, reference: Params, *, model: LanguageModel, beta: float
) -> tuple[losses.Pair, Metrics]:
    """Computes -log σ(r_w - r_l) of the implicit rewards (equation 7).

    This is InstructGPT's ranking loss (section 3.5, equation 1) with implicit rewards: over all pairs of a prompt's
    answers, and with the same treatment of ties.

    Args:
      params: the policy's weights.
      batch: prompts with their ranked answers.
      key: unused. There is no dropout, because policy and reference must be computed in the same way.
      reference: the reference policy's weights.
      model: the model of both.
      beta: see `implicit_rewards`.
    """
    del key
    rewards = implicit_rewards(model, params, reference, batch, beta)
    ranked = objectives.by_prompt(rewards, batch.scores, batch.valid)
    return losses.ranking_loss(*ranked), {"accuracy": Mean(*losses.ranking_accuracy(*ranked))}
