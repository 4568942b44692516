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

from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib.figure import Figure

from instructjax import files, warning_log
from instructjax.reporting import curves, figures, views
from instructjax.reporting.answers_section import format_answers, format_samples
from instructjax.reporting.figures import lookup
from instructjax.reporting.findings import SMOKE, findings, is_smoke
from instructjax.reporting.rankings_section import format_report
from instructjax.reporting.tables import Results, flag_rows, known_columns, markdown, model_rows, task_rows

_LEARNING = ("loss", "accuracy")  # panels of the reward model's learning curves
SHOWN_WARNINGS = 20
_RATERS = {"heldout": "held-out"}
_CAPTIONS = {
    "win_rates": "Win rates against SFT, as in the paper's Figures 1 and 3.",
    "ppo": "The reward model's score, the KL to the initial policy and, if known, the true quality during PPO.",
    "pretrain_loss": "Loss on held-out pretraining text. The dotted line is GPT's.",
    "reward_model": "The reward model's loss and accuracy on training and held-out rankings.",
    "calibration": (
        "Calibration of the reward model on held-out rankings. Each point is a bin of pairs of answers that the "
        "labeler did not tie: the predicted probability σ(r_w − r_l) that the answer with the higher reward is ranked "
        "above the other, and the share of pairs in which it is. The dotted line is perfect calibration."
    ),
    "human": (
        "Left: accuracy of the reward model and its baselines on held-out rankings. "
        "Right: share of facts stated; the dashed line is that of texts by people."
    ),
}


def terminal_table(results: Results) -> str:
    """Formats the models and their measures as aligned text, with the findings below.

    Returns:
      Lines, without a line break at the end. Intervals are 95 %, as mean ± half width.
    """
    header, *rows = model_rows(results)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join([cells[0].ljust(len(name)), *numbers]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, rows), rule, *findings(results)])


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
    drawn = figures.draw(results, metrics) | reward_model_figures(results, metrics)
    for name, figure in drawn.items():
        figures.save(figure, workdir / f"{name}.png")
    parts = [
        "# InstructGPT in miniature: report",
        f"Recipe `{results['config']}`, seed {results['seed']}.",
        f"**{SMOKE}**" if is_smoke(results) else "",
        "## Models",
        markdown(model_rows(results)),
        "Intervals (±) are 95 %, clustered by prompt. The columns:",
        "\n".join(f"- *{column.name}*: {column.meaning}" for column in known_columns(results)),
        *_section("## Findings", "" if is_smoke(results) else "\n".join(f"- {text}" for text in findings(results))),
        *_section("## Rankings", format_report(results["rankings"]) if results.get("rankings") else ""),
        *_section("## Figures", "\n\n".join(f"![{name}]({name}.png)\n\n{_CAPTIONS[name]}" for name in drawn)),
        *_section("## Answers", format_answers(workdir, results)),
        *_section("## Answers during PPO", format_samples(workdir, list(metrics))),
        *_section("## Warnings", _warnings(workdir)),
    ]
    if flags := flag_rows(results):
        parts += [
            "## Flags of the answers",
            "Share of a model's answers with each flag, set by held-out labelers (the paper's Table 3).",
            markdown(flags),
        ]
    if tasks := task_rows(results):
        parts += [
            "## Public tasks",
            "Values are means ± standard errors, by stage; see docs/tasks.md for the metrics.",
            markdown(tasks),
        ]
    if results.get("wall_seconds"):
        cost = [["stage", "seconds"], *([name, f"{s:.0f}"] for name, s in results["wall_seconds"].items())]
        memory = f"Peak memory: {results['peak_rss_gib']:.2f} GiB." if results.get("peak_rss_gib") else ""
        parts += ["## Cost", markdown(cost), memory]
    path = workdir / "report.md"
    files.write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def reward_model_figures(results: Results, metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Figure]:
    """Draws the reward model's learning curves and its calibration.

    Returns:
      Figures by name: "reward_model", if there are metrics of the stage; "calibration", if the results have it.
    """
    drawn = {}
    lines = metrics.get("reward", ())
    if panels := curves.reported_panels([lines], [panel for panel in curves.PANELS if panel.title in _LEARNING]):
        drawn["reward_model"] = curves.draw({"reward": lines}, panels)
    if bins := lookup(results, "reward_model", "calibration") or lookup(results, "human", "calibration"):
        drawn["calibration"] = views.calibration({_RATERS.get(group, group): found for group, found in bins.items()})
    return drawn


def _warnings(workdir: epath.Path) -> str:
    """Returns the newest lines of warnings.log."""
    lines = warning_log.read(workdir)
    note = f"The newest {SHOWN_WARNINGS} of {len(lines)}; {warning_log.NAME} has all of them.\n\n"
    return (note if len(lines) > SHOWN_WARNINGS else "") + "\n".join(f"- {line}" for line in lines[-SHOWN_WARNINGS:])


def _section(heading: str, content: str) -> tuple[str, ...]:
    return (heading, content) if content else ()
