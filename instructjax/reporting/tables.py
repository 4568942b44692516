"""Tables of a report: the models with their measures, and the flags of their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.reporting.figures import lookup, styles

Results = Mapping[str, Any]
Estimate = Mapping[str, float]  # "mean", "low", "high", "n"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table of models.

    Attributes:
      name: the header.
      keys: the path of its values in results.json, with MODEL for the model.
      digits: their format.
      meaning: the explanation in report.md.
    """

    name: str
    keys: tuple[str, ...]
    digits: str
    meaning: str


COLUMNS = (
    Column(
        "vs SFT, training",
        ("models", "MODEL", "win_rate_vs_sft", "training"),
        ".3f",
        "win rate against another sample of SFT's answers, judged by training labelers; a tie counts half",
    ),
    Column(
        "vs SFT, held-out",
        ("models", "MODEL", "win_rate_vs_sft", "heldout"),
        ".3f",
        "the same, judged by held-out labelers, who ranked no training data",
    ),
    Column(
        "true quality",
        ("models", "MODEL", "true_quality"),
        ".3f",
        "quality by the sandbox's own criteria, from 0 to 1; no model is trained on it",
    ),
    Column(
        "facts stated",
        ("human", "facts_stated", "MODEL"),
        ".3f",
        "share of the prompt's facts that the answer states, from 0 to 1",
    ),
    Column("exact match", ("exact_match", "MODEL"), ".3f", "share of the answers that end in the right number"),
    Column(
        "reward",
        ("models", "MODEL", "reward"),
        ".2f",
        "score by the reward model, of which training demonstrations score 0 on average unless it was imported, or by "
        "the reward function",
    ),
    Column("Likert", ("models", "MODEL", "likert"), ".2f", "mean score by held-out labelers, from 1 to 7"),
    Column(
        "text loss",
        ("models", "MODEL", "pretrain_loss"),
        ".3f",
        "loss on held-out pretraining text, in nats per token; lower is better",
    ),
    Column(
        "KL",
        ("models", "MODEL", "kl_to_init"),
        ".2f",
        "log-ratio of an answer between the model and PPO's initial policy, averaged over the model's own answers, "
        "in nats",
    ),
    Column("tokens", ("models", "MODEL", "response_tokens"), ".1f", "mean length of an answer, EOS included"),
)


def _value(results: Results, column: Column, model: str) -> float | Estimate | None:
    return lookup(results, *(model if key == "MODEL" else key for key in column.keys))


def known_models(results: Results) -> list[str]:
    """Returns the models that have an entry in the results, in the order of reports."""
    return [name for name in styles(results["models"]) if lookup(results, "models", name) is not None]


def known_columns(results: Results) -> list[Column]:
    """Returns the columns for which at least one model has a value."""
    models = known_models(results)
    return [column for column in COLUMNS if any(_value(results, column, model) is not None for model in models)]


def model_rows(results: Results) -> list[list[str]]:
    """Returns a header, and one row per model."""
    columns, names = known_columns(results), styles(results["models"])
    header = ["model", *(column.name for column in columns)]
    rows = [
        [one_line(names[m][0]), *(_number(_value(results, column, m), column.digits) for column in columns)]
        for m in known_models(results)
    ]
    return [header, *rows]


def flag_rows(results: Results) -> list[list[str]]:
    """Returns a header, and one row per flag of Table 3; empty if no model has flags."""
    names = styles(results["models"])
    models = [name for name in names if lookup(results, "models", name, "metadata")]
    flags = list(dict.fromkeys(flag for m in models for flag in results["models"][m]["metadata"]))
    rows = [[f, *(_number(results["models"][m]["metadata"].get(f), ".3f") for m in models)] for f in flags]
    return [["flag", *(one_line(names[m][0]) for m in models)], *rows] if rows else []


def task_rows(results: Results) -> list[list[str]]:
    """Returns a header, and one row per metric of a public task, with a column per stage; [] without tasks."""
    stages: Mapping[str, Sequence[Mapping[str, Any]]] = results.get("tasks", {})
    cells: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for stage, measured in stages.items():
        for one in measured:
            key = (one["task"], one["prompt_type"], str(one["shots"]), one["metric"])
            cells.setdefault(key, {})[stage] = f"{one['value']:.3f} ± {one['stderr']:.3f}"
    rows = [
        [f"{task}, {metric}", prompt, shots, *(row.get(stage, "–") for stage in stages)]
        for (task, prompt, shots, metric), row in cells.items()
    ]
    return [["task", "prompt", "shots", *stages], *rows] if rows else []


def one_line(name: str) -> str:
    """Joins the lines of a model's label."""
    return name.replace("\n", " ")


def _number(value: float | Estimate | None, digits: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:{digits}} ± {half:{digits}}"
    return f"{value:{digits}}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats a header and rows as a table in Markdown, with numbers aligned to the right."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([header, rule, *body])
