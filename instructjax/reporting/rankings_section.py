"""The report on a reward model and people's rankings: a section of report.md, and a line for the view of runs.

The report is what `ranking_report.evaluate_rankings` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.reporting.tables import Estimate, markdown

Report = Mapping[str, Any]

_NAMES = {
    "reward_model": "reward model",
    "length": "length",
    "bag_of_words": "bag of words",
    "raters": "raters with each other",
    "difference": "reward model minus the better baseline",
}


def format_line(report: Report) -> str:
    """Formats the accuracies as one line: the reward model's, those of the baselines, and the raters' agreement."""
    known = {name: found for name, found in report["accuracy"].items() if found and name != "difference"}
    if not known:
        prompts = report["splits"]["test"]["prompts"]
        return f"test rankings: no accuracy; expected rankings of at least 2 prompts, found {prompts}"
    model, *others = [f"{_NAMES[name]} {found['mean']:.3f}" for name, found in known.items()]
    half = f" ± {_half(known['reward_model']):.3f}" if "reward_model" in known else ""
    n = f" (n {known['reward_model']['n']})" if "reward_model" in known else ""
    return f"test rankings: {model}{half}{n}, " + ", ".join(others)


def format_report(report: Report) -> str:
    """Formats the report as Markdown: accuracies, splits, groups of pairs, calibration."""
    parts = [
        "Accuracy is the share of untied pairs of answers that are ordered as the labeler did, in the test split. "
        "Intervals (±) are 95 %, clustered by prompt.",
        markdown([["order by", "accuracy", "pairs"], *_accuracy_rows(report)]),
        f"*length* prefers the {report['length_prefers']} answer, and *bag of words* is a linear reward of the words "
        "in an answer; both are fitted to training rankings. *raters* is how often two raters agree, a ceiling.",
        _best(report),
        markdown([["split", "rankings", "pairs", "loss", "accuracy"], *_split_rows(report)]),
        "The loss is that of pairs, in nats. Of the training split, the first rankings are measured.",
        *_groups(report),
        f"Temperature: rewards divided by {report['temperature']:.3g} have the least loss on validation rankings. On "
        f"test rankings this changes the loss from {report['splits']['test']['loss']:.3f} to "
        f"{report['loss_with_temperature']:.3f}; the order of answers stays. Above 1, the reward model is "
        "overconfident.",
        markdown([["pairs by margin", "predicted", "with temperature", "right"], *_calibration_rows(report)]),
    ]
    if candidates := report.get("candidates"):
        rows = [[step, f"{loss:.4f}"] for step, loss in candidates.items()]
        parts += [
            f"Checkpoints by validation loss; the one of step {report['step']} was kept:",
            markdown([["step", "validation loss"], *rows]),
        ]
    return "\n\n".join(parts)


def _accuracy_rows(report: Report) -> list[list[str]]:
    known = {name: found for name, found in report["accuracy"].items() if found}
    return [[_NAMES[name], _interval(found), str(found["n"])] for name, found in known.items()]


def _split_rows(report: Report) -> list[list[str]]:
    return [
        [split, str(found["rankings"]), str(found["pairs"]), f"{found['loss']:.3f}", _interval(found["accuracy"])]
        for split, found in report["splits"].items()
    ]


def _groups(report: Report) -> Sequence[str]:
    """Returns tables of the accuracy by K, by the labeler's margin, and by length."""
    parts = [markdown([["answers", "accuracy", "pairs"], *_rows(report["by_answers"].items())])]
    for key, name in (("by_margin", "difference of scores"), ("by_length", "characters by which the better is longer")):
        groups = [(f"{group['low']:.4g} to {group['high']:.4g}", group["accuracy"]) for group in report[key]]
        parts.append(markdown([[name, "accuracy", "pairs"], *_rows(groups)]))
    return parts


def _rows(groups: Any) -> list[list[str]]:
    return [[name, _interval(found), str(found["n"]) if found else "–"] for name, found in groups]


def _calibration_rows(report: Report) -> list[list[str]]:
    bins, cooled = report["calibration"].values()
    return [
        [f"{one['margin']:.3g}", f"{one['predicted']:.3f}", f"{other['predicted']:.3f}", f"{one['right']:.3f}"]
        for one, other in zip(bins, cooled, strict=True)
    ]


def _best(report: Report) -> str:
    return (
        "The answer with the highest reward is one that the labeler scored highest in "
        f"{_interval(report['best_of_k'])} of the rankings; a random answer would be in {report['chance_of_k']:.3f}."
    )


def _interval(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate['mean']:.3f} ± {_half(estimate):.3f}"


def _half(estimate: Estimate) -> float:
    return (estimate["high"] - estimate["low"]) / 2
