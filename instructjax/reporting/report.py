"""The end of a run for people: a table in the terminal, and report.md with its figures.

Everything is derived from `results.json` and the stages' metrics, so a report can be
written anew without running anything. A measure that is null or missing leaves out its
column, line or figure. On human data, where no true world can be asked, the results carry

    "human": {
      "accuracy": {"single" | "averaged": {"reward_model" | "length" | "raters" | "difference": ESTIMATE}},
      "length_prefers": "longer" | "shorter",
      "calibration": {"single" | "averaged": [{"margin", "predicted", "right", "n"}, ...]},
      "facts_stated": {MODEL | "references": ESTIMATE}}

with ESTIMATE = {"mean", "low", "high", "n"}; `agreement.against_raters` makes the first three,
`facts.share_of_facts` the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.reporting import figures
from instructjax.reporting.figures import lookup, styles

Results = Mapping[str, Any]

_CAPTIONS = {
    "win_rates": "Win rates against SFT, as in the paper's Figures 1 and 3.",
    "ppo": "Reward by the reward model, KL to the initial policy and, where it is known, true quality over PPO.",
    "pretrain_loss": "Loss on held-out pretraining text. The dotted line is GPT.",
    "human": "Left: the reward model and its baselines on held-out rankings. Right: facts stated; dashed, people.",
}


def alignment_tax(results: Results) -> float | None:
    """The share of the loss on pretraining text given away by PPO that PPO-ptx takes back.

    (ppo - ppo_ptx) / (ppo - gpt): 1 if PPO-ptx is as good on the text as GPT, 0 if it is no
    better than PPO; more than 1 and less than 0 are possible (section 4.2, "alignment tax").

    Returns:
      The share, or None where a loss is missing or PPO gave nothing away.
    """
    gpt, ppo, ppo_ptx = (lookup(results, "models", name, "pretrain_loss") for name in ("gpt", "ppo", "ppo_ptx"))
    if gpt is None or ppo is None or ppo_ptx is None or ppo <= gpt:
        return None
    return (ppo - ppo_ptx) / (ppo - gpt)


def terminal_table(results: Results) -> str:
    """The models and their measures as aligned text, with the reward model below.

    Returns:
      Lines without a line break at the end; intervals are 95 %, as mean ± half width.
    """
    header, *rows = _model_rows(results)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join([cells[0].ljust(len(name)), *numbers]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows), rule, *_remarks(results)])


def write_report(
    workdir: epath.PathLike, results: Results, metrics: Mapping[str, Sequence[Mapping[str, float]]]
) -> epath.Path:
    """Writes report.md and its figures (PNG) into a directory.

    Args:
      workdir: an existing directory.
      results: what stands in results.json.
      metrics: for each stage, the lines of its metrics.jsonl.

    Returns:
      The path of report.md.
    """
    workdir = epath.Path(workdir)
    drawn = figures.draw(results, metrics)
    for name, figure in drawn.items():
        figures.save(figure, workdir / f"{name}.png")
    header, *rows = _model_rows(results)
    parts = [
        "# InstructGPT in miniature: report",
        f"Config `{results['config']}`, seed {results['seed']}. Intervals are 95 %, clustered by prompt.",
        _markdown([header, *rows]),
        "\n".join(f"- {remark}" for remark in _remarks(results)),
        *(f"![{name}]({name}.png)\n\n{_CAPTIONS[name]}" for name in drawn),
    ]
    if metadata := _metadata_rows(results):
        parts += ["## Flags of the answers\n\nShares of answers, with the fields of Table 3.", _markdown(metadata)]
    if results.get("wall_seconds"):
        cost = [["stage", "seconds"], *([name, f"{s:.0f}"] for name, s in results["wall_seconds"].items())]
        memory = f"Peak memory: {results['peak_rss_gib']:.2f} GiB." if results.get("peak_rss_gib") else ""
        parts += ["## Cost", _markdown(cost), memory]
    path = workdir / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _model_rows(results: Results) -> list[list[str]]:
    """A header and a row for each model; columns of which nothing is known are left out."""
    shown = styles(results["models"])
    models = [name for name in shown if lookup(results, "models", name) is not None]
    columns: list[tuple[str, Callable[[str], Any], str]] = [
        ("vs SFT, training", lambda m: lookup(results, "models", m, "win_rate_vs_sft", "training"), ".3f"),
        ("vs SFT, held-out", lambda m: lookup(results, "models", m, "win_rate_vs_sft", "heldout"), ".3f"),
        ("true quality", lambda m: lookup(results, "models", m, "true_quality"), ".3f"),
        ("facts stated", lambda m: lookup(results, "human", "facts_stated", m), ".3f"),
        ("reward", lambda m: lookup(results, "models", m, "reward"), ".2f"),
        ("Likert", lambda m: lookup(results, "models", m, "likert"), ".2f"),
        ("text loss", lambda m: lookup(results, "models", m, "pretrain_loss"), ".3f"),
        ("KL", lambda m: lookup(results, "models", m, "kl_to_init"), ".2f"),
        ("tokens", lambda m: lookup(results, "models", m, "response_tokens"), ".1f"),
    ]
    known = [column for column in columns if any(column[1](model) is not None for model in models)]
    header = ["model", *(name for name, _, _ in known)]
    rows = [[_one_line(shown[m][0]), *(_number(value(m), digits) for _, value, digits in known)] for m in models]
    return [header, *rows]


def _metadata_rows(results: Results) -> list[list[str]]:
    """A header and a row for each field of Table 3; empty without metadata."""
    shown = styles(results["models"])
    models = [name for name in shown if lookup(results, "models", name, "metadata")]
    fields = list(dict.fromkeys(field for m in models for field in results["models"][m]["metadata"]))
    rows = [[f, *(_number(results["models"][m]["metadata"].get(f), ".3f") for m in models)] for f in fields]
    return [["field", *(_one_line(shown[m][0]) for m in models)], *rows] if rows else []


def _remarks(results: Results) -> list[str]:
    """One sentence for each finding beyond the models: the tax, and the reward model."""
    remarks = []
    if (tax := alignment_tax(results)) is not None:
        remarks.append(f"PPO-ptx takes back {100 * tax:.0f} % of the loss on pretraining text that PPO gave away.")
    reward_model = results.get("reward_model") or {}
    for key, name in (("training", "training"), ("heldout", "held-out")):
        if (accuracy := lookup(reward_model, "accuracy", f"{key}_labelers")) is not None:
            agreement = lookup(reward_model, "labeler_agreement", key)
            remark = f"The reward model orders {_share(accuracy)} of untied pairs as {name} labelers do"
            remarks.append(remark + (f"; they agree on {_share(agreement)}." if agreement is not None else "."))
    people = results.get("human") or {}
    for key, name in (("averaged", "averaged raters"), ("single", "single raters")):
        found = lookup(people, "accuracy", key) or {}
        if found.get("reward_model") is not None:
            remark = f"Held-out items, against {name}: reward model {_share(found['reward_model'])}"
            if found.get("length") is not None:
                prefers = people.get("length_prefers")
                remark += f", length baseline{f' ({prefers} is better)' if prefers else ''} {_share(found['length'])}"
            if found.get("difference") is not None:
                remark += f", difference {_share(found['difference'])}"
            if found.get("raters") is not None:
                remark += f", agreement of raters {_share(found['raters'])}"
            remarks.append(remark + ".")
    if (references := lookup(people, "facts_stated", "references")) is not None:
        remarks.append(f"Texts by people state {_share(references)} of the facts.")
    return remarks


def _one_line(name: str) -> str:
    return name.replace("\n", " ")


def _number(value: float | Mapping[str, float] | None, digits: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:{digits}} ± {half:{digits}}"
    return f"{value:{digits}}"


def _share(value: float | Mapping[str, float]) -> str:
    if isinstance(value, Mapping):
        return f"{100 * value['mean']:.1f} ± {50 * (value['high'] - value['low']):.1f} %"
    return f"{100 * value:.1f} %"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([header, rule, *body])
