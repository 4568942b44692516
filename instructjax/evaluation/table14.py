"""Reads the paper's Table 14, all automatic evaluations of its models, from `table14.csv`."""

from __future__ import annotations

import csv
import functools
import importlib.resources

# Rows whose labels the paper seems to have exchanged: with its released samples, each row fits the other's label.
EXCHANGED = {
    ("Truthful QA", "instruction"): "QA + instruct",
    ("Truthful QA", "QA + instruct"): "instruction",
}
MODELS = tuple(f"{kind}-{size}" for kind in ("gpt", "sft", "ppo-noptx", "ppo-ptx") for size in ("xl", "6b", "175b"))


@functools.cache
def table14() -> dict[tuple[str, str, str], dict[str, float]]:
    """Returns {(task, metric, prompt): {model: value}}, as printed.

    F1 and BLEU are in points from 0 to 100, entropy in bits, other values in [0, 1]. A model is one of `MODELS`. The
    rows CNN/DM and TLDR hold the same twelve numbers, so one of them is a copy.
    """
    text = importlib.resources.files("instructjax.evaluation").joinpath("table14.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(row["task"], row["metric"], row["prompt"]): {model: float(row[model]) for model in MODELS} for row in rows}


def paper_value(task: str, metric: str, prompt: str, model: str) -> float | None:
    """Returns a cell of Table 14 as printed; None if the table does not have it."""
    return table14().get((task, metric, prompt), {}).get(model)
