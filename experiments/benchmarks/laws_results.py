"""The results of laws.py: fits, extrapolations, trends over reward models, and the two questions; see its page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructjax.errors import DataError
from instructjax.evaluation import law_bootstrap, overoptimization, two_samples
from instructjax.evaluation.law_bootstrap import Curve
from instructjax.evaluation.overoptimization import LAWS, Law, Method

FORMS: Mapping[Law, str] = {"best of n": "d (α - β d)", "rl": "d (α - β log d)"}
DRAWS = 1_000
COEFFICIENTS = ("alpha", "beta")


def analyze(
    arms: Sequence[Mapping[str, Any]], curves: Mapping[str, Mapping[str, Curve]], prompts: Sequence[str]
) -> dict[str, Any]:
    """Computes all results.

    Args:
      arms: what each arm is: "name", "size", "parameters", "comparisons", "labels" and "kl_coefficient".
      curves: for each name, those of best of n and PPO.
      prompts: P texts; intervals are over them.

    Returns:
      JSON: the arms with points, fits and extrapolations; the trends over reward models of noisy labels; and what a KL
      penalty and exact labels change.
    """
    weights = law_bootstrap.resample(prompts, DRAWS)
    fitted: dict[str, dict[Method, np.ndarray]] = {}
    reported = []
    for arm in arms:
        name = arm["name"]
        fitted[name] = {
            method: law_bootstrap.coefficients(law, curves[name][method], weights) for method, law in LAWS.items()
        }
        methods = {method: _of_curve(method, curves[name][method], fitted[name][method], weights) for method in LAWS}
        reported.append({**arm, **methods})
    first = arms[0]["kl_coefficient"]
    plain = [arm for arm in arms if arm["kl_coefficient"] == first]
    noisy = [arm for arm in plain if arm["labels"] == "noisy"]
    results = {
        "prompts": len(prompts),
        "arms": reported,
        "trends": {method: _trend(method, noisy, curves, fitted, weights) for method in LAWS},
        "penalty": _penalty(arms, first, curves, weights),
        "noise": [_noise(arm, plain, curves, weights) for arm in plain if arm["labels"] == "exact"],
    }
    rounded: dict[str, Any] = _rounded(results)
    return rounded


def _rounded(value: Any) -> Any:
    """Returns JSON with six digits of each number, and null for infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _of_curve(method: Method, curve: Curve, fitted: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Returns points, fits of both laws, and an extrapolation."""
    law, n = LAWS[method], weights.shape[1]
    kl, gain = law_bootstrap.points(curve, weights)
    fits = {
        form: dataclasses.asdict(found) | {"peak": found.peak}
        for form in FORMS
        for found in [overoptimization.fit(form, kl[0], gain[0])]
    }
    fits[law] |= {
        name: law_bootstrap.interval(values, n).to_dict() for name, values in zip(COEFFICIENTS, fitted.T, strict=True)
    }
    return {
        "points": [
            {
                "kl": float(kl[0, place]),
                "proxy": float(curve.proxy[place].mean()),
                "gold": float(curve.gold[place].mean()),
                "gain": law_bootstrap.interval(gain[:, place], n).to_dict(),
            }
            for place in range(len(curve.kl))
        ],
        "fits": fits,
        "extrapolation": _described(law_bootstrap.extrapolate, law, curve, weights),
    }


def _described(predict: Any, *arguments: Any) -> dict[str, Any] | None:
    """Returns a prediction as JSON; None if too few points are left for one."""
    try:
        found = predict(*arguments)
    except DataError:
        return None
    return dataclasses.asdict(found) | {"is_inside": found.is_inside}


def _trend(
    method: Method,
    arms: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Curve]],
    fitted: Mapping[str, Mapping[Method, np.ndarray]],
    weights: np.ndarray,
) -> dict[str, Any] | None:
    """Returns what a doubling of parameters or comparisons adds to α and β, and predictions for the largest size.

    None if the reward models do not differ in both.
    """
    features = np.array([(np.log2(arm["parameters"]), np.log2(arm["comparisons"])) for arm in arms])
    coefficients = np.stack([fitted[arm["name"]][method] for arm in arms], axis=1)
    largest = features[:, 0] == features[:, 0].max()
    try:
        slopes = law_bootstrap.trend(coefficients, features)
        smaller = law_bootstrap.trend(coefficients[:, ~largest], features[~largest])
    except DataError:
        return None
    n = weights.shape[1]
    explained = slopes[0, 0] + features @ slopes[0, 1:]
    residual, spread = coefficients[0] - explained, coefficients[0] - coefficients[0].mean(axis=0)
    return {
        **{
            name: {
                feature: law_bootstrap.interval(slopes[:, 1 + row, column], n).to_dict()
                for row, feature in enumerate(("parameters", "comparisons"))
            }
            | {"r_squared": float(1 - (residual[:, column] ** 2).sum() / (spread[:, column] ** 2).sum())}
            for column, name in enumerate(COEFFICIENTS)
        },
        "unseen": [
            {"name": arm["name"]}
            | (
                _described(
                    law_bootstrap.predict_unseen, LAWS[method], curves[arm["name"]][method], weights, smaller, feature
                )
                or {}
            )
            for arm, feature, is_largest in zip(arms, features, largest, strict=True)
            if is_largest
        ],
    }


def _penalty(
    arms: Sequence[Mapping[str, Any]],
    first: float,
    curves: Mapping[str, Mapping[str, Curve]],
    weights: np.ndarray,
) -> list[dict[str, Any]]:
    """Compares PPO with a KL penalty and PPO with the first coefficient, against the same reward model at equal KL."""
    rows = []
    for arm in arms:
        if arm["kl_coefficient"] == first:
            continue
        (without,) = (
            other
            for other in arms
            if other["kl_coefficient"] == first
            and all(other[key] == arm[key] for key in ("size", "comparisons", "labels"))
        )
        gaps = law_bootstrap.gap(curves[without["name"]]["ppo"], curves[arm["name"]]["ppo"], weights)
        rows.append(
            {
                "kl_coefficient": arm["kl_coefficient"],
                "against": first,
                "gap": law_bootstrap.interval(gaps, weights.shape[1]).to_dict(),
                "p_value": law_bootstrap.p_value(gaps),
            }
        )
    adjusted = two_samples.holm([row["p_value"] for row in rows]) if rows else []
    return [{**row, "adjusted_p_value": p} for row, p in zip(rows, adjusted, strict=True)]


def _noise(
    arm: Mapping[str, Any],
    plain: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Curve]],
    weights: np.ndarray,
) -> dict[str, Any]:
    """Compares exact with noisy labels of the same answers: the fall up to the same KL, and gains at equal KL."""
    (noisy,) = (
        other
        for other in plain
        if other["labels"] == "noisy" and all(other[key] == arm[key] for key in ("size", "comparisons"))
    )
    found: dict[str, Any] = {"comparisons": arm["comparisons"], "exact": arm["name"], "noisy": noisy["name"]}
    for method in LAWS:
        pair = {labels: curves[other["name"]][method] for labels, other in (("noisy", noisy), ("exact", arm))}
        common = np.min([law_bootstrap.points(curve, weights)[0].max(1) for curve in pair.values()], axis=0)
        values = {labels: law_bootstrap.fall(curve, weights, common) for labels, curve in pair.items()}
        values["difference"] = values["noisy"] - values["exact"]
        values["gap"] = law_bootstrap.gap(pair["noisy"], pair["exact"], weights)
        n = weights.shape[1]
        found[method] = {"kl": float(common[0])}
        found[method] |= {name: law_bootstrap.interval(value, n).to_dict() for name, value in values.items()}
    return found


def lines(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines to print: a row for each arm and method."""
    printed = [
        f"{'arm':32} {'method':>9} {'KL':>6} {'gain':>6} {'alpha':>15} {'beta':>15} {'R^2':>6} {'predicted':>22}"
    ]
    for arm in results["arms"]:
        for method, law in LAWS.items():
            found = arm[method]
            fit, last = found["fits"][law], found["points"][-1]
            printed.append(
                f"{arm['name']:32} {method:>9} {last['kl']:6.2f} {last['gain']['mean']:6.3f} "
                f"{spread(fit['alpha']):>15} {spread(fit['beta']):>15} {fit['r_squared']:6.3f} "
                f"{predicted(found['extrapolation']):>25}"
            )
    return printed


def spread(estimate: Mapping[str, float]) -> str:
    """Returns a number with half the width of its interval."""
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}"


def predicted(found: Mapping[str, Any] | None) -> str:
    """Returns an interval with the measured gain, and whether that is inside."""
    if not found:
        return "–"
    relation = "in" if found["is_inside"] else "not in"
    return f"{found['measured']:.3f} {relation} {found['low']:.3f} to {found['high']:.3f}"
