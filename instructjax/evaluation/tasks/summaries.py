"""CNN/DM and TL;DR: summaries of news and of posts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task, Tfds
from instructjax.evaluation.text_metrics import rouge_l


def make_reader(text: str, summary: str, tfds: Tfds | None = None) -> Callable[[epath.Path], list[Example]]:
    """Builds a reader of JSON lines with a text and its summary.

    Args:
      text: the name of the text's field.
      summary: the name of the summary's.
      tfds: describes the same set in tfds.
    """

    def read(path: epath.Path) -> list[Example]:
        return [
            Example(
                f"{record[text].strip()}\n\nTL;DR:",
                f" {' '.join(record[summary].split())}",
                references=(record[summary],),
                group=where,
                where=where,
            )
            for where, record in read_json_lines(path, {text: str, summary: str}, tfds)
        ]

    return read


def measure(
    examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]
) -> dict[str, np.ndarray]:
    """Measures ROUGE-L F, in [0, 1]."""
    score = rouge_l()
    return {
        "ROUGE-L": np.array(
            [
                score(output.response or "", example.references)
                for example, output in zip(examples, outputs, strict=True)
            ]
        )
    }


CNN_DM_TFDS = Tfds("cnn_dailymail", "test")
CNN_DM = Task(
    name="cnn_dm",
    paper="CNN/DM",
    file="cnn_dailymail/test.jsonl",
    read=make_reader("article", "highlights", CNN_DM_TFDS),
    instructions={"": ""},
    measure=measure,
    shots=15,
    max_tokens=300,
    tfds=CNN_DM_TFDS,
)
TLDR = Task(
    name="tldr",
    paper="TLDR",
    file="tldr/test.jsonl",
    read=make_reader("content", "summary"),
    instructions={"": ""},
    measure=measure,
    shots=15,
    max_tokens=300,
)
