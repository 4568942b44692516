"""Reports how well a reward model orders held-out answers, next to baselines and the raters themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from instructjax.errors import SampleSizeError
from instructjax.evaluation import agreement, baselines
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.records import Ranking

Rewards = Sequence[np.ndarray]  # [K] per ranking
BINS = 5  # of margins and of lengths
_LOG_TEMPERATURES = (-5.0, 5.0)  # natural logarithm


def evaluate_rankings(rankings: Mapping[str, Sequence[Ranking]], rewards: Mapping[str, Rewards]) -> dict[str, Any]:
    """Evaluates a reward model on rankings of the test split.

    Args:
      rankings: by split, "train", "validation" and "test". The baselines are fitted to "train".
      rewards: for "validation", "test" and the first rankings of "train", the rewards of their answers.

    Returns:
      {
        "splits": {SPLIT: {"rankings", "pairs", "prompts": counts, "loss": nats, "accuracy": ESTIMATE}},
        "accuracy": {"reward_model", "length", "bag_of_words", "raters", "difference": ESTIMATE or None},
        "length_prefers": "longer" or "shorter",
        "best_of_k": ESTIMATE, how often the answer with the highest reward is one that the labeler scored highest,
        "chance_of_k": its expectation for a random answer,
        "by_answers": {K: ESTIMATE},
        "by_margin", "by_length": [{"low", "high": the range, "accuracy": ESTIMATE}],
        "temperature": T,
        "loss_with_temperature": nats,
        "calibration": {"reward model", "with temperature": see `agreement.calibration`},
      }
      All but "splits" are about "test". "raters" is how often two raters agree, and None if no answers were ranked
      twice. "bag_of_words" is None without scikit-learn. "difference" is the reward model minus the better baseline.
      An estimate is None if fewer than two prompts have such pairs. "by_margin" groups pairs by the difference of the
      labeler's scores, and "by_length" by how many characters longer the better answer is. T minimizes the loss of
      rewards / T on "validation".
    """
    test, scored = rankings["test"], rewards["test"]
    length, prefers = agreement.length_rewards(rankings["train"], test)
    others: dict[str, Rewards] = {"length": length}
    if baselines.can_fit():
        others["bag_of_words"] = baselines.bag_of_words_rewards(rankings["train"], test)
    found = {name: _accuracy(test, values) for name, values in others.items()}
    best = max(others, key=lambda name: estimate.mean if (estimate := found[name]) else 0.0)
    temperature = fit_temperature(rankings["validation"], rewards["validation"])
    cooled = [values / temperature for values in scored]
    return {
        "splits": {split: _split(rankings[split][: len(values)], values) for split, values in rewards.items()},
        "accuracy": {
            "reward_model": _described(_accuracy(test, scored)),
            "length": _described(found["length"]),
            "bag_of_words": _described(found.get("bag_of_words")),
            "raters": _described(_if_enough(agreement.pairwise_agreement, test)),
            "difference": _described(_if_enough(agreement.accuracy_difference, test, scored, others[best])),
        },
        "length_prefers": prefers,
        "best_of_k": _described(_if_enough(best_of_k, test, scored)),
        "chance_of_k": chance_of_k(test),
        "by_answers": _by_answers(test, scored),
        "by_margin": _by(test, scored, lambda ranking: np.asarray(ranking.scores, np.float64)),
        "by_length": _by(test, scored, lambda ranking: np.array([len(text) for text in ranking.responses], np.float64)),
        "temperature": temperature,
        "loss_with_temperature": ranking_loss(test, cooled),
        "calibration": {
            "reward model": agreement.calibration(test, scored),
            "with temperature": agreement.calibration(test, cooled),
        },
    }


def ranking_loss(rankings: Sequence[Ranking], rewards: Rewards) -> float:
    """Computes the mean of -log sigmoid(r_better - r_worse) over all untied pairs, in nats.

    Every pair has the same weight; in training, every ranking has the same weight.
    """
    return float(-special.log_expit(_signed_margins(rankings, rewards)).mean())


def fit_temperature(rankings: Sequence[Ranking], rewards: Rewards) -> float:
    """Finds the temperature T between exp(-5) and exp(5) that minimizes `ranking_loss` of rewards / T.

    T > 1 means that the reward model is overconfident. The order of answers does not change.
    """
    margins = _signed_margins(rankings, rewards)

    def loss(log_temperature: float) -> float:
        return float(-special.log_expit(margins * np.exp(-log_temperature)).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def best_of_k(rankings: Sequence[Ranking], rewards: Rewards) -> Estimate:
    """Computes how often the answer with the highest reward is one of those that the labeler scored highest.

    If several answers have the highest reward, a ranking counts the share of them that are best.
    """
    hits = []
    for ranking, values in zip(rankings, rewards, strict=True):
        chosen = np.asarray(values) == np.max(values)
        hits.append(np.mean(np.asarray(ranking.scores)[chosen] == max(ranking.scores)))
    return clustered_mean(hits, [ranking.prompt for ranking in rankings])


def chance_of_k(rankings: Sequence[Ranking]) -> float:
    """Computes the expectation of `best_of_k` for a random answer."""
    return float(np.mean([np.mean(np.equal(ranking.scores, max(ranking.scores))) for ranking in rankings]))


def score_rankings(rankings: Sequence[Ranking], rewards: Rewards) -> dict[str, Estimate | float | None]:
    """Scores a reward model on any rankings, as reward benchmarks do.

    Returns:
      {"accuracy": of untied pairs, "best_of_k": see there, "chance_of_k": its expectation for a random answer, "ties":
      how often all of several best answers have a higher reward than all others (a part of RewardBench 2's score for
      ties; Malik et al. 2025)}. An estimate is None if fewer than two prompts have such answers.
    """
    tied = [(r, v) for r, v in zip(rankings, rewards, strict=True) if 1 < r.scores.count(max(r.scores)) < len(r.scores)]
    above = []
    for ranking, values in tied:
        best = np.equal(ranking.scores, max(ranking.scores))
        above.append(float(np.min(np.asarray(values)[best]) > np.max(np.asarray(values)[~best])))
    return {
        "accuracy": _accuracy(rankings, rewards),
        "best_of_k": _if_enough(best_of_k, rankings, rewards),
        "chance_of_k": chance_of_k(rankings),
        "ties": _if_enough(clustered_mean, above, [ranking.prompt for ranking, _ in tied]),
    }


def _split(rankings: Sequence[Ranking], rewards: Rewards) -> dict[str, Any]:
    return {
        "rankings": len(rankings),
        "prompts": len({ranking.prompt for ranking in rankings}),
        "pairs": len(_signed_margins(rankings, rewards)),
        "loss": ranking_loss(rankings, rewards),
        "accuracy": _described(_accuracy(rankings, rewards)),
    }


def _signed_margins(rankings: Sequence[Ranking], rewards: Rewards) -> np.ndarray:
    """Returns r_better - r_worse of all untied pairs."""
    return np.concatenate([_differences(ranking, values) for ranking, values in zip(rankings, rewards, strict=True)])


def _differences(ranking: Ranking, values: np.ndarray | Sequence[float]) -> np.ndarray:
    """Returns, for each untied pair, a value of the better answer minus that of the worse one."""
    scores, values = np.asarray(ranking.scores), np.asarray(values, np.float64)
    i, j = np.triu_indices(len(scores), k=1)
    order = np.sign(scores[i] - scores[j])
    return (order * (values[i] - values[j]))[order != 0]


def _by_answers(rankings: Sequence[Ranking], rewards: Rewards) -> dict[str, Any]:
    """Returns the accuracy by K, the number of answers of a ranking."""
    groups: dict[int, list[tuple[Ranking, np.ndarray]]] = {}
    for ranking, values in zip(rankings, rewards, strict=True):
        groups.setdefault(len(ranking.responses), []).append((ranking, values))
    return {str(k): _described(_accuracy(*zip(*groups[k], strict=True))) for k in sorted(groups)}


def _by(rankings: Sequence[Ranking], rewards: Rewards, value: Any) -> list[dict[str, Any]]:
    """Groups the untied pairs by a value of the better answer minus that of the worse one, in up to BINS quantiles."""
    margins = _signed_margins(rankings, rewards)
    credits = (np.sign(margins) + 1) / 2
    differences = np.concatenate([_differences(ranking, value(ranking)) for ranking in rankings])
    prompts = [r.prompt for r in rankings for _ in _differences(r, r.scores)]
    edges = np.unique(np.quantile(differences, np.linspace(0, 1, BINS + 1), method="lower"))
    number = np.clip(np.searchsorted(edges, differences, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [
        {
            "low": float(differences[inside].min()),
            "high": float(differences[inside].max()),
            "accuracy": _described(
                _if_enough(clustered_mean, credits[inside], [prompts[i] for i in np.flatnonzero(inside)])
            ),
        }
        for inside in (number == n for n in range(number.max() + 1))
        if inside.any()
    ]


def _accuracy(rankings: Sequence[Ranking], rewards: Rewards) -> Estimate | None:
    return _if_enough(agreement.reward_accuracy, rankings, rewards)


def _if_enough(estimate: Any, *arguments: Any) -> Estimate | None:
    """Returns an estimate, or None if fewer than two prompts have the values that it needs."""
    try:
        return estimate(*arguments)
    except SampleSizeError:
        return None


def _described(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else estimate.to_dict()
