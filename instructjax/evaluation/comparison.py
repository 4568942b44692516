"""Compares models by answers that people, a reward model or simulated labelers judged (section 3.6).

A judged record is a JSON line with the answers of K models to one prompt, and a judge's score for each:

    {"prompt": "...", "responses": [...], "models": ["sft", "ppo"], "scores": [4, 6], "labeler": "ann"}

Unlike a ranking to train on, all answers may tie. "metadata" may hold an object per answer with the fields of Table 3.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax import records
from instructjax.errors import DataError, RecordError
from instructjax.evaluation.intervals import Estimate, clustered_mean
from instructjax.evaluation.preference import outcomes, win_rate
from instructjax.evaluation.text_metrics import require
from instructjax.records import Prompt, Ranking


@dataclasses.dataclass(frozen=True)
class Judged:
    """Answers of several models to one prompt, judged by one labeler.

    Attributes:
      prompt: the prompt.
      labeler: who judged; "" if that is not known.
      models: K names.
      responses: K texts.
      scores: K numbers, higher is better, equal is a tie.
      metadata: K mappings with the fields of Table 3, or ().
    """

    prompt: str
    labeler: str
    models: tuple[str, ...]
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    metadata: tuple[Mapping[str, float], ...] = ()


def read(path: epath.PathLike, field: str = "scores") -> list[Judged]:
    """Reads a file of judged records.

    Args:
      path: .jsonl or .jsonl.gz.
      field: where the scores are: "scores", or "rewards" in a file of `experiments/score.py`.

    Raises:
      RecordError: "FILE:LINE: field: expected ..., found ...".
    """
    return [_judged(record, field) for record in records.read(path, Prompt)]


def _judged(record: Prompt, field: str) -> Judged:
    extra, where = record.extra, record.where
    models = _list(extra.get("models"), str, "texts", f"{where}: models")
    if not 2 <= len(set(models)) == len(models):
        raise RecordError(f"{where}: models: expected at least 2 different names, found {models!r:.60}")
    responses = _list(extra.get("responses"), str, "texts", f"{where}: responses", len(models))
    scores = _list(extra.get(field), (int, float), "numbers", f"{where}: {field}", len(models))
    metadata: list[Any] = []
    if extra.get("metadata") is not None:
        metadata = _list(extra["metadata"], dict, "objects", f"{where}: metadata", len(models))
        for entry in metadata:
            for name, value in entry.items():
                if not isinstance(value, int | float):
                    raise RecordError(f"{where}: metadata: {name}: expected a number, found {value!r:.40}")
    return Judged(
        record.prompt,
        record.labeler or "",
        tuple(models),
        tuple(responses),
        tuple(map(float, scores)),
        tuple(metadata),
    )


def _list(found: Any, kind: Any, what: str, where: str, count: int | None = None) -> list[Any]:
    right = isinstance(found, list) and all(isinstance(x, kind) and not isinstance(x, bool) for x in found)
    if not right or count not in (None, len(found)):
        expected = f"a list of {what}" if count is None else f"{count} {what}"
        raise RecordError(f"{where}: expected {expected}, found {found!r:.60}")
    return found


def compare(judged: Sequence[Judged], baseline: str) -> dict[str, dict[str, Any]]:
    """Computes how often each model's answer is preferred to the baseline's.

    Args:
      judged: records, some with answers of the baseline.
      baseline: the name of a model.

    Returns:
      {MODEL: {"wins", "ties", "losses": counts, "win_rate": ESTIMATE, "length_controlled": see below}}, where a tie
      counts half and intervals are clustered by prompt.

    Raises:
      DataError: no record has the baseline and another model, or a model has fewer than two prompts with it.
    """
    pairs: dict[str, list[tuple[float, str, int]]] = collections.defaultdict(list)
    for record in judged:
        if baseline not in record.models:
            continue
        base = record.models.index(baseline)
        results = outcomes(record.scores, [record.scores[base]] * len(record.scores))
        for k, model in enumerate(record.models):
            if k != base:
                longer = len(record.responses[k]) - len(record.responses[base])
                pairs[model].append((float(results[k]), record.prompt, longer))
    if not pairs:
        known = sorted({model for record in judged for model in record.models})
        raise DataError(
            f"--baseline: expected a model with which others are compared, of {', '.join(known)}, found {baseline}"
        )
    found = {}
    for model, compared in pairs.items():
        won, prompts, differences = map(list, zip(*compared, strict=True))
        found[model] = {
            "wins": won.count(1.0),
            "ties": won.count(0.5),
            "losses": won.count(0.0),
            "win_rate": win_rate(won, prompts).to_dict(),
            "length_controlled": length_controlled(won, differences),
        }
    return found


def length_controlled(won: Sequence[float], longer: Sequence[float]) -> float:
    """Estimates what the win rate would be if both answers were equally long, as in AlpacaEval 2 (Dubois et al. 2024).

    It is sigmoid(a) of the model P(win) = sigmoid(a + b tanh(longer / its standard deviation)), which scikit-learn's
    logistic regression fits. A weak penalty on b (C = 100) keeps it finite if length alone decides. A tie is half a
    win and half a loss.

    Args:
      won: [n], 1, 0.5 for a tie, or 0.
      longer: [n], how much longer the model's answer is than the other, in any unit.

    Raises:
      DataError: scikit-learn is not installed.
    """
    won_array, difference = np.asarray(won, np.float64), np.asarray(longer, np.float64)
    if len(set(won_array.tolist())) == 1:  # nothing to fit: all won, all lost, or all tied
        return float(won_array[0])
    x = np.tanh(difference / (difference.std() or 1.0))
    weights = np.concatenate([won_array, 1 - won_array])
    labels = np.repeat([1, 0], len(x))
    kept = weights > 0
    model = require("sklearn.linear_model").LogisticRegression(C=100.0)
    model.fit(np.concatenate([x, x])[kept, None], labels[kept], sample_weight=weights[kept])
    return float(model.predict_proba([[0.0]])[0, 1])


def ratings(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, float]]]:
    """Averages the fields of the metadata, such as overall_quality (Likert, 1 to 7) and the flags of Table 3.

    Returns:
      {MODEL: {FIELD: ESTIMATE}}, clustered by prompt. A field with values for fewer than two prompts is left out.
    """
    values: dict[tuple[str, str], list[tuple[float, str]]] = collections.defaultdict(list)
    for record in judged:
        for model, entry in zip(record.models, record.metadata, strict=False):
            for field, value in entry.items():
                values[model, field].append((float(value), record.prompt))
    found: dict[str, dict[str, dict[str, float]]] = collections.defaultdict(dict)
    for (model, field), rated in values.items():
        numbers, prompts = map(list, zip(*rated, strict=True))
        if len(set(prompts)) > 1:
            found[model][field] = clustered_mean(numbers, prompts).to_dict()
    return dict(found)


def labeler_agreement(judged: Sequence[Judged]) -> dict[str, Any]:
    """Measures how often labelers agree about the same pairs of answers.

    If a labeler judged a pair several times, the first judgment counts.

    Returns:
      {"alpha": see `krippendorff_alpha`, None if no pair was judged twice; "pairwise": ESTIMATE of how often two
      labelers order a pair alike, if neither ties it; "labelers": {NAME: {"agreement": with the others, "n": pairs}}}.
    """
    units: dict[Any, list[tuple[str, float]]] = collections.defaultdict(list)
    for record in judged:
        order = sorted(range(len(record.models)), key=record.models.__getitem__)
        for i, j in itertools.combinations(order, 2):
            pair = (record.prompt, *((record.models[k], record.responses[k]) for k in (i, j)))
            if not record.labeler or record.labeler not in (labeler for labeler, _ in units[pair]):
                units[pair].append((record.labeler, float(np.sign(record.scores[i] - record.scores[j]))))
    alike: list[bool] = []
    prompts: list[str] = []
    labelers: dict[str, list[bool]] = collections.defaultdict(list)
    for (prompt, *_), found in units.items():
        for (one, first), (other, second) in itertools.combinations(found, 2):
            if first and second:
                alike.append(first == second)
                prompts.append(prompt)
                labelers[one].append(first == second)
                labelers[other].append(first == second)
    pairwise: Estimate | None = clustered_mean(alike, prompts) if len(set(prompts)) > 1 else None
    return {
        "alpha": krippendorff_alpha([[order for _, order in found] for found in units.values()]),
        "pairwise": None if pairwise is None else pairwise.to_dict(),
        "labelers": {
            name: {"agreement": float(np.mean(x)), "n": len(x)} for name, x in sorted(labelers.items()) if name
        },
    }


def ranking_agreement(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Measures how far labelers agree about the same answers to the same prompt; see `labeler_agreement`.

    The direction of a pair is given by hashes of its answers. If the first answer were the better one of most pairs,
    alpha would take agreement about that for chance.

    Args:
      rankings: those of one prompt have their answers in the same order.
    """

    def name(place: int, answer: str) -> str:
        return hashlib.sha256(f"{place} {answer}".encode()).hexdigest()

    return labeler_agreement(
        [
            Judged(
                one.prompt,
                one.labeler or "",
                tuple(map(name, itertools.count(), one.responses)),
                one.responses,
                one.scores,
            )
            for one in rankings
        ]
    )


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Computes Krippendorff's alpha with the interval metric: 1 - observed / expected squared difference.

    Args:
      units: for each unit, the values that labelers gave it. Units with fewer than two values are left out.

    Returns:
      alpha: 1 for perfect agreement, 0 for chance; None if no unit has two values or all values are equal.
    """
    paired = [np.asarray(values, np.float64) for values in units if len(values) > 1]
    if not paired:
        return None
    every = np.concatenate(paired)
    # The sum of squared differences over ordered pairs of m values is 2 m^2 times their variance.
    observed = sum(2 * len(values) ** 2 * values.var() / (len(values) - 1) for values in paired) / len(every)
    expected = 2 * len(every) * every.var() / (len(every) - 1)
    return float(1 - observed / expected) if expected > 0 else None
