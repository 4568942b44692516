"""Answers of all models to some prompts, as a section of a report."""

from __future__ import annotations

import json
import random
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax.reporting.figures import styles
from instructjax.reporting.tables import Results, one_line
from instructjax.runs import folder, samples_file

SHOWN_PROMPTS = 10


def format_answers(workdir: epath.Path, results: Results) -> str:
    """Formats every model's answers to some prompts, drawn at random with a fixed seed."""
    path = workdir / "evaluate" / "answers.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    drawn = sorted(random.Random(0).sample(range(len(rows)), min(SHOWN_PROMPTS, len(rows))))
    names = {model: one_line(name) for model, (name, _) in styles(results["models"]).items()}
    width = 2 + max(map(len, names.values()))

    def entry(row: Mapping[str, str]) -> str:
        answers = [_indented(names[model], row[model], width) for model in names if model in row]
        return "\n".join([_indented("prompt", row["prompt"], width), "", *answers])

    blocks = [_fenced(entry(rows[i])) for i in drawn]
    note = f"All models' answers to {len(drawn)} of {len(rows)} test prompts, drawn at random."
    return "\n\n".join([f"{note} evaluate/answers.jsonl has all of them.", *blocks]) if blocks else ""


def format_samples(workdir: epath.Path, stages: Sequence[str]) -> str:
    """Formats some answers that policies gave while they trained: of each stage at its first, middle and last step.

    Args:
      workdir: the run's folder.
      stages: names of stages; those without samples are left out.
    """
    parts = []
    for stage in stages:
        samples = samples_file.read(folder.stage_directory(workdir, stage))
        steps = sorted({sample["step"] for sample in samples})
        shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
        blocks = [format_step(samples, step) for step in shown]
        if blocks:
            parts += [f"Validation answers of {stage}; {stage}/{samples_file.NAME} has more.", *map(_fenced, blocks)]
    return "\n\n".join(parts)


def format_step(samples: Sequence[Mapping[str, Any]], step: int) -> str:
    """Formats the answers of one step with their rewards.

    Args:
      samples: lines of a samples.jsonl.
      step: of the policy that answered.
    """
    lines = [f"step {step}"]
    for sample in samples:
        if sample["step"] == step:
            lines += ["", _indented("prompt", sample["prompt"], 9), _indented("answer", sample["response"], 9)]
            lines.append(f"reward   {sample['reward']:.4g}")
    return "\n".join(lines)


def _indented(name: str, text: str, width: int) -> str:
    """Formats a text after its name, wrapped, and cut if it is very long."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110 - width) or [""]] or [""]
    if len(lines) > 12:
        lines = [*lines[:12], "..."]
    indent = "\n" + " " * width
    return (name.ljust(width) + indent.join(lines)).rstrip()


def _fenced(text: str) -> str:
    """Returns a block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
