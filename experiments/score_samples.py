"""Recomputes cells of the paper's Table 14 from the samples that OpenAI released with the paper.

    python experiments/score_samples.py FILE... [--json=PATH] [--markdown]

FILE is DATASET_samples.csv or .csv.gz, as in openai/following-instructions-human-feedback, automatic-eval-samples.
Prints, for each model and prompt type: our value, its standard error, the paper's value, and whether it is in our
95 % interval. --json writes the same as a list of objects. --markdown prints docs/table14.md instead.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from instructjax import files
from instructjax.errors import InputError
from instructjax.evaluation.released_samples import DATASETS, Cell, score_file

_INTRODUCTION = """# Table 14, recomputed

OpenAI released samples of the paper's 12 models: 100 prompts of several public sets. This page computes the paper's
metrics from them, and compares each with the cell of the paper's Table 14. It is the output of

    python experiments/score_samples.py squadv2_samples.csv.gz fr_to_en_samples.csv.gz \\
        real_toxicity_samples.csv.gz truthful_qa_samples.csv.gz --markdown > docs/table14.md

The paper's values are for whole sets, ours for 100 prompts. A cell *agrees* if the paper's value is in our 95 %
interval, value ± 1.96 standard errors, where the standard error accounts for sampling 100 of the paper's prompts
without replacement; BLEU's comes from 500 bootstrap samples. All cells of a set use the same 100 prompts, so their
deviations share a part: the mean difference over the models.

- F1 is that of SQuAD's official script, with "Not in background." as an ordinary reference. BLEU is sacrebleu's (13a).
- TruthfulQA counts a judge's probability above 0.5 as true or informative. Toxicity is Perspective's, as released.
- The files for DROP, QuAC, CNN/DM and TL;DR have the same columns; the script reads them as well.
"""
_EXCHANGED = """Two pairs of rows of Table 14 look wrong:

- TruthfulQA's rows "instruction" and "QA + instruct" seem to be exchanged. Under the labels of the samples, most cells
  do not agree. With the two rows exchanged, most do.
- The rows "CNN/DM" and "TLDR" hold the same twelve numbers, so one of them is a copy."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are of one line, as those of the other scripts."""

    def error(self, message: str) -> None:
        raise InputError(message)


def main(arguments: Sequence[str]) -> None:
    """Scores the files and prints a table."""
    parser = _Parser(usage="score_samples.py FILE... [--json=PATH] [--markdown]", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--json", metavar="PATH", help="write a list of objects, one for each cell")
    parser.add_argument("--markdown", action="store_true", help="print docs/table14.md instead of a plain table")
    given = parser.parse_args(arguments)
    if not given.files:
        raise InputError("expected a file of samples, or several, found none")
    cells = [cell for file in given.files for cell in score_file(files.parse(file, "FILE"))]
    if given.json:
        files.write_json(files.parse(given.json, "--json"), [cell.to_dict() for cell in cells])
    print(markdown(cells) if given.markdown else "\n".join(plain_lines(cells)))


def plain_lines(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each cell and each row of Table 14."""
    lines = [
        f"{'dataset':14}{'metric':12}{'prompt':19}{'model':16}{'ours':>8} {'stderr':>7} {'paper':>8}  agrees",
        *(
            f"{cell.dataset:14}{cell.metric:12}{cell.prompt_type:19}{cell.model:16}{_number(cell, cell.value):>8} "
            f"{_number(cell, cell.stderr):>7} {_number(cell, cell.paper):>8}  {_agrees(cell)}"
            for cell in cells
        ),
        "",
        f"{'dataset':14}{'metric':12}{'prompt':19}{'agree':>8} {'mean difference':>16}  with the rows exchanged",
    ]
    for (dataset, metric, prompt), row in _rows(cells).items():
        if any(cell.paper is not None for cell in row):
            exchanged = (
                f"{_count(row, exchanged=True)} {_difference(row, exchanged=True):>7}" if row[0].exchanged else ""
            )
            lines.append(
                f"{dataset:14}{metric:12}{prompt:19}{_count(row):>8} {_difference(row):>16}  {exchanged}".rstrip()
            )
    return lines


def markdown(cells: Sequence[Cell]) -> str:
    """Formats docs/table14.md."""
    rows = {key: row for key, row in _rows(cells).items() if any(cell.paper is not None for cell in row)}
    parts = [
        _INTRODUCTION,
        "## Agreement",
        "",
        "| set | metric | prompt | cells that agree | mean difference, ours − paper | with the two rows exchanged |",
        "|---|---|---|---|---|---|",
    ]
    for (dataset, metric, prompt), row in rows.items():
        exchanged = f"{_count(row, exchanged=True)}, {_difference(row, exchanged=True)}" if row[0].exchanged else ""
        label = DATASETS[dataset].task
        parts.append(f"| {label} | {metric} | {prompt} | {_count(row)} | {_difference(row)} | {exchanged} |")
    printed, exchanged = _total(rows.values()), _total(rows.values(), exchanged=True)
    parts += ["", f"In total, {printed} cells agree with the rows as printed, {exchanged} with the two rows exchanged."]
    parts += ["", _EXCHANGED] if any(row[0].exchanged for row in rows.values()) else []
    for dataset, metric in dict.fromkeys((dataset, metric) for dataset, metric, _ in rows):
        parts += _cell_table({key[2]: row for key, row in rows.items() if key[:2] == (dataset, metric)})
    return "\n".join(parts)


def _cell_table(rows: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Returns the Markdown lines of one set and metric: a line per model, and two or three columns per prompt."""
    first = next(iter(rows.values()))[0]
    lines = ["", f"## {DATASETS[first.dataset].task}, {first.metric}", ""]
    header = ["model"]
    for prompt, row in rows.items():
        header += [f"{prompt or 'ours'}: ours ± s.e.", "paper", *(["row exchanged"] if row[0].exchanged else [])]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for cells in zip(*rows.values(), strict=True):
        columns = [cells[0].model]
        for cell in cells:
            columns += [f"{_number(cell, cell.value)} ± {_number(cell, cell.stderr)}", _marked(cell, cell.paper)]
            columns += [_marked(cell, cell.exchanged)] if cell.exchanged is not None else []
        lines.append("| " + " | ".join(columns) + " |")
    return [*lines, *(["", "✗: outside our 95 % interval."] if any("✗" in line for line in lines) else [])]


def _rows(cells: Iterable[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """Groups cells by row of Table 14: (dataset, metric, prompt type)."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.dataset, cell.metric, cell.prompt_type), []).append(cell)
    return rows


def _count(row: Sequence[Cell], exchanged: bool = False) -> str:
    agree = [cell.fits(cell.exchanged if exchanged else cell.paper) for cell in row]
    return f"{agree.count(True)} of {len(agree) - agree.count(None)}"


def _difference(row: Sequence[Cell], exchanged: bool = False) -> str:
    pairs = [(cell.value, cell.exchanged if exchanged else cell.paper) for cell in row]
    mean = float(np.mean([value - paper for value, paper in pairs if paper is not None]))
    return f"{mean:+.1f}" if _in_points(row[0]) else f"{mean:+.3f}"


def _total(rows: Iterable[Sequence[Cell]], exchanged: bool = False) -> str:
    counted = [
        cell.fits(cell.exchanged if exchanged and row[0].exchanged else cell.paper) for row in rows for cell in row
    ]
    return f"{counted.count(True)} of {len(counted) - counted.count(None)}"


def _in_points(cell: Cell) -> bool:
    return cell.metric in ("f1", "BLEU")


def _number(cell: Cell, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if _in_points(cell) else f"{value:.3f}"


def _marked(cell: Cell, paper: float | None) -> str:
    return _number(cell, paper) + (" ✗" if cell.fits(paper) is False else "")


def _agrees(cell: Cell) -> str:
    return {True: "yes", False: "no", None: "–"}[cell.agrees]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # the file of --json cannot be written
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
