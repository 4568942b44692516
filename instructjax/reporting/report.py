"""Reports a finished run: a table in the terminal, and report.md with its figures.

Everything is derived from `results.json`, `evaluate/answers.jsonl` and the stages' metrics, so a
report can be rewritten without running anything. Columns, lines and figures whose measure is
null or missing are left out.

A report claims only what the numbers support. It makes no claims for a smoke run. A difference
whose interval contains zero, or two numbers whose intervals overlap, are "too small to tell".

On human data, where the true quality of an answer is unknown, the results contain

    "human": {
      "accuracy": {"single" | "averaged": {"reward_model" | "length" | "raters" | "difference": ESTIMATE}},
      "length_prefers": "longer" | "shorter",
      "calibration": {"single" | "averaged": [{"margin", "predicted", "right", "n"}, ...]},
      "facts_stated": {MODEL | "references": ESTIMATE}}

with ESTIMATE = {"mean", "low", "high", "n"}. The first three are from
`agreement.compare_with_raters`, the last is from `facts.share_of_facts`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.reporting import figures
from instructjax.reporting.figures import lookup, styles

Results = Mapping[str, Any]
Estimate = Mapping[str, float]  # "mean", "low", "high", "n"

SHOWN_PROMPTS = 10
LEAST_TAX = 0.01  # nats per token; the loss on text has no interval, and a smaller difference is not interpreted
SMOKE = (
    "This is a smoke run: it checks that every stage works. Its models are too small and its steps too few to tell "
    "anything about win rates, the alignment tax or the agreement with labelers."
)
TOO_SMALL = "too small to tell"

_CAPTIONS = {
    "win_rates": "Win rates against SFT, as in the paper's Figures 1 and 3.",
    "ppo": "The reward model's score, the KL to the initial policy and, if known, the true quality during PPO.",
    "pretrain_loss": "Loss on held-out pretraining text. The dotted line is GPT's.",
    "human": (
        "Left: accuracy of the reward model and its baselines on held-out rankings. "
        "Right: share of facts stated; the dashed line is that of texts by people."
    ),
}


@dataclasses.dataclass(frozen=True)
class _Column:
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


_COLUMNS = (
    _Column(
        "vs SFT, training",
        ("models", "MODEL", "win_rate_vs_sft", "training"),
        ".3f",
        "win rate against another sample of SFT's answers, judged by training labelers; a tie counts half",
    ),
    _Column(
        "vs SFT, held-out",
        ("models", "MODEL", "win_rate_vs_sft", "heldout"),
        ".3f",
        "the same, judged by held-out labelers, who ranked no training data",
    ),
    _Column(
        "true quality",
        ("models", "MODEL", "true_quality"),
        ".3f",
        "quality by the sandbox's own criteria, from 0 to 1; no model is trained on it",
    ),
    _Column(
        "facts stated",
        ("human", "facts_stated", "MODEL"),
        ".3f",
        "share of the prompt's facts that the answer states, from 0 to 1",
    ),
    _Column(
        "reward",
        ("models", "MODEL", "reward"),
        ".2f",
        "score by the reward model; training demonstrations score 0 on average, unless it was imported",
    ),
    _Column("Likert", ("models", "MODEL", "likert"), ".2f", "mean score by held-out labelers, from 1 to 7"),
    _Column(
        "text loss",
        ("models", "MODEL", "pretrain_loss"),
        ".3f",
        "loss on held-out pretraining text, in nats per token; lower is better",
    ),
    _Column(
        "KL",
        ("models", "MODEL", "kl_to_init"),
        ".2f",
        "log-ratio of an answer between the model and PPO's initial policy, averaged over the model's own answers, "
        "in nats",
    ),
    _Column("tokens", ("models", "MODEL", "response_tokens"), ".1f", "mean length of an answer, EOS included"),
)


def alignment_tax(results: Results) -> float | None:
    """Computes the share of the alignment tax that PPO-ptx takes back (section 4.2).

    The tax is the loss on pretraining text that PPO gives away. The share is
    (ppo - ppo_ptx) / (ppo - gpt): 1 if PPO-ptx is as good on the text as GPT, 0 if it is no better
    than PPO. Values above 1 and below 0 are possible.

    Returns:
      The share, or None if a loss is missing or PPO gave nothing away.
    """
    gpt, ppo, ppo_ptx = (lookup(results, "models", name, "pretrain_loss") for name in ("gpt", "ppo", "ppo_ptx"))
    if gpt is None or ppo is None or ppo_ptx is None or ppo <= gpt:
        return None
    return (ppo - ppo_ptx) / (ppo - gpt)


def is_smoke(results: Results) -> bool:
    """Returns whether a run used the smoke variant of its recipe, such as "configs/sandbox.py:smoke"."""
    return results["config"].rpartition(":")[2] == "smoke"


def terminal_table(results: Results) -> str:
    """Formats the models and their measures as aligned text, with the findings below.

    Returns:
      Lines, without a line break at the end. Intervals are 95 %, as mean ± half width.
    """
    header, *rows = _model_rows(results)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join([cells[0].ljust(len(name)), *numbers]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows), rule, *_findings(results)])


def write_report(
    workdir: epath.PathLike, results: Results, metrics: Mapping[str, Sequence[Mapping[str, float]]]
) -> epath.Path:
    """Writes report.md and its figures (PNG) into the folder of a run.

    The report shows some answers of every model if WORKDIR/evaluate/answers.jsonl exists.

    Args:
      workdir: an existing folder.
      results: the content of results.json.
      metrics: for each stage, the lines of its metrics.jsonl.

    Returns:
      The path of report.md.
    """
    workdir = epath.Path(workdir)
    drawn = figures.draw(results, metrics)
    for name, figure in drawn.items():
        figures.save(figure, workdir / f"{name}.png")
    parts = [
        "# InstructGPT in miniature: report",
        f"Recipe `{results['config']}`, seed {results['seed']}.",
        f"**{SMOKE}**" if is_smoke(results) else "",
        "## Models",
        _markdown(_model_rows(results)),
        "Intervals (±) are 95 %, clustered by prompt. The columns:",
        "\n".join(f"- *{column.name}*: {column.meaning}" for column in _known_columns(results)),
        *_section("## Findings", "" if is_smoke(results) else "\n".join(f"- {text}" for text in _findings(results))),
        *_section("## Figures", "\n\n".join(f"![{name}]({name}.png)\n\n{_CAPTIONS[name]}" for name in drawn)),
        *_section("## Answers", _answers(workdir, results)),
    ]
    if flags := _flag_rows(results):
        parts += [
            "## Flags of the answers",
            "Share of a model's answers with each flag, set by held-out labelers (the paper's Table 3).",
            _markdown(flags),
        ]
    if results.get("wall_seconds"):
        cost = [["stage", "seconds"], *([name, f"{s:.0f}"] for name, s in results["wall_seconds"].items())]
        memory = f"Peak memory: {results['peak_rss_gib']:.2f} GiB." if results.get("peak_rss_gib") else ""
        parts += ["## Cost", _markdown(cost), memory]
    path = workdir / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _section(heading: str, content: str) -> tuple[str, ...]:
    return (heading, content) if content else ()


def _value(results: Results, column: _Column, model: str) -> float | Estimate | None:
    return lookup(results, *(model if key == "MODEL" else key for key in column.keys))


def _models(results: Results) -> list[str]:
    return [name for name in styles(results["models"]) if lookup(results, "models", name) is not None]


def _known_columns(results: Results) -> list[_Column]:
    """Returns the columns for which at least one model has a value."""
    models = _models(results)
    return [column for column in _COLUMNS if any(_value(results, column, model) is not None for model in models)]


def _model_rows(results: Results) -> list[list[str]]:
    """Returns a header, and one row per model."""
    columns, names = _known_columns(results), styles(results["models"])
    header = ["model", *(column.name for column in columns)]
    rows = [
        [_one_line(names[m][0]), *(_number(_value(results, column, m), column.digits) for column in columns)]
        for m in _models(results)
    ]
    return [header, *rows]


def _flag_rows(results: Results) -> list[list[str]]:
    """Returns a header, and one row per flag of Table 3; empty if no model has flags."""
    names = styles(results["models"])
    models = [name for name in names if lookup(results, "models", name, "metadata")]
    flags = list(dict.fromkeys(flag for m in models for flag in results["models"][m]["metadata"]))
    rows = [[f, *(_number(results["models"][m]["metadata"].get(f), ".3f") for m in models)] for f in flags]
    return [["flag", *(_one_line(names[m][0]) for m in models)], *rows] if rows else []


def _findings(results: Results) -> list[str]:
    """Returns one sentence or two per finding, or only the notice of a smoke run."""
    if is_smoke(results):
        return [SMOKE]
    return [
        *_preferences(results),
        *_tax(results),
        *_agreement(results.get("reward_model") or {}),
        *_human(results.get("human") or {}),
    ]


def _preferences(results: Results) -> list[str]:
    names = {model: _one_line(styles(results["models"])[model][0]) for model in _models(results) if model != "sft"}
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for model, name in names.items():
        if estimate := lookup(results, "models", model, "win_rate_vs_sft", "heldout"):
            (better if estimate["low"] > 0.5 else worse if estimate["high"] < 0.5 else unclear).append(name)
    found = []
    if better:
        found.append(f"Held-out labelers prefer {_and(better)} to SFT.")
    if worse:
        found.append(f"Held-out labelers prefer SFT to {_and(worse)}.")
    if unclear:
        found.append(f"The preference between SFT and {_and(unclear)} is {TOO_SMALL}.")
    return found


def _tax(results: Results) -> list[str]:
    share = alignment_tax(results)
    if share is None:
        return []
    given_away = results["models"]["ppo"]["pretrain_loss"] - results["models"]["gpt"]["pretrain_loss"]
    if given_away < LEAST_TAX:
        excess = f"PPO's loss on pretraining text is {given_away:.4f} nats per token above GPT's"
        return [f"The alignment tax is {TOO_SMALL}: {excess}."]
    return [f"PPO-ptx takes back {100 * share:.0f} % of the loss on pretraining text that PPO gave away."]


def _agreement(reward_model: Mapping[str, Any]) -> list[str]:
    found = []
    for group, name in (("training", "training"), ("heldout", "held-out")):
        accuracy, agreement = (
            _first_known(lookup(reward_model, "intervals", measure, group), lookup(reward_model, measure, key))
            for measure, key in (("accuracy", f"{group}_labelers"), ("labeler_agreement", group))
        )
        if accuracy is None:
            continue
        text = f"The reward model orders {_share(accuracy)} of untied pairs as {name} labelers do"
        if agreement is not None:
            text += f"; they agree on {_share(agreement)}"
        if isinstance(accuracy, Mapping) and accuracy["low"] <= 0.5 <= accuracy["high"]:
            text += f". The reward model's difference from chance is {TOO_SMALL}"
        elif _overlap(accuracy, agreement):
            text += f". The difference is {TOO_SMALL}"
        found.append(text + ".")
    return found


def _human(human: Mapping[str, Any]) -> list[str]:
    found = []
    for key, name in (("averaged", "averaged raters"), ("single", "single raters")):
        accuracy = lookup(human, "accuracy", key) or {}
        if accuracy.get("reward_model") is None:
            continue
        text = f"Accuracy on held-out rankings by {name}: reward model {_share(accuracy['reward_model'])}"
        if accuracy.get("length") is not None:
            prefers = human.get("length_prefers")
            text += f", length baseline{f' ({prefers} is better)' if prefers else ''} {_share(accuracy['length'])}"
        if (difference := accuracy.get("difference")) is not None:
            text += f", difference {_share(difference)}"
            text += f" ({TOO_SMALL})" if difference["low"] <= 0 <= difference["high"] else ""
        if accuracy.get("raters") is not None:
            text += f", agreement of raters {_share(accuracy['raters'])}"
        found.append(text + ".")
    if (references := lookup(human, "facts_stated", "references")) is not None:
        found.append(f"Texts by people state {_share(references)} of the facts.")
    return found


def _answers(workdir: epath.Path, results: Results) -> str:
    """Formats every model's answers to some prompts, drawn at random with a fixed seed."""
    path = workdir / "evaluate" / "answers.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(SHOWN_PROMPTS, len(rows))))
    names = {model: _one_line(name) for model, (name, _) in styles(results["models"]).items()}
    width = 2 + max(map(len, names.values()))

    def entry(row: Mapping[str, str]) -> str:
        answers = [_indented(names[model], row[model], width) for model in names if model in row]
        return "\n".join([_indented("prompt", row["prompt"], width), "", *answers])

    blocks = [_fenced(entry(rows[i])) for i in drawn]
    note = f"All models' answers to {len(drawn)} of {len(rows)} test prompts, drawn at random."
    return "\n\n".join([f"{note} evaluate/answers.jsonl has all of them.", *blocks]) if blocks else ""


def _indented(name: str, text: str, width: int) -> str:
    """Formats a text behind its name, wrapped, and cut if it is very long."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110 - width) or [""]] or [""]
    if len(lines) > 12:
        lines = [*lines[:12], "..."]
    indent = "\n" + " " * width
    return (name.ljust(width) + indent.join(lines)).rstrip()


def _fenced(text: str) -> str:
    """Returns a block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _overlap(one: float | Estimate | None, other: float | Estimate | None) -> bool:
    """Returns whether two intervals overlap; False if either number has none."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def _first_known(*values: float | Estimate | None) -> float | Estimate | None:
    return next((value for value in values if value is not None), None)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _one_line(name: str) -> str:
    return name.replace("\n", " ")


def _number(value: float | Estimate | None, digits: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:{digits}} ± {half:{digits}}"
    return f"{value:{digits}}"


def _share(value: float | Estimate) -> str:
    if isinstance(value, Mapping):
        return f"{100 * value['mean']:.1f} ± {50 * (value['high'] - value['low']):.1f} %"
    return f"{100 * value:.1f} %"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([header, rule, *body])
