"""SQuAD 2.0: questions about a paragraph, some of which it does not answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task
from instructjax.evaluation.text_metrics import squad_exact, squad_f1

UNANSWERABLE = "Not in background."


def read(path: epath.Path) -> list[Example]:
    """Reads {"title", "context", "question", "answers"} per line; [] if the paragraph has no answer.

    The earlier questions about a paragraph stand before a question, with their first reference.
    """
    examples: list[Example] = []
    paragraph, text = ("", ""), ""
    for where, record in read_json_lines(path, {"title": str, "context": str, "question": str, "answers": list}):
        answers = tuple(record["answers"]) or (UNANSWERABLE,)
        if not all(isinstance(answer, str) for answer in answers):
            raise RecordError(f"{where}: answers: expected a list of texts, found {record['answers']!r:.60}")
        if paragraph != (record["title"], record["context"]):
            paragraph = record["title"], record["context"]
            text = f"Title: {record['title']}\n\nBackground: {record['context']}"
        text += f"\n\nQ: {record['question']}\n\nA:"
        group = "\n".join(paragraph)
        examples.append(Example(text, f" {answers[0]}", references=answers, group=group, where=where))
        text += f" {answers[0]}"
    return examples


def measure(
    examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]
) -> dict[str, np.ndarray]:
    """Measures F1 and exact match by SQuAD's rules, from 0 to 100. "Not in background." is an ordinary reference."""
    pairs = [(output.response or "", example.references) for example, output in zip(examples, outputs, strict=True)]
    return {
        "f1": np.array([100 * squad_f1(*pair) for pair in pairs]),
        "exact": np.array([100 * squad_exact(*pair) for pair in pairs]),
    }


TASK = Task(
    name="squadv2",
    paper="SQuADv2",
    file="squad_v2_dev_half/dev.jsonl.gz",
    read=read,
    instructions={
        "": "Answer each question using information in the preceding background paragraph. If there is not enough "
        f'information provided, answer with "{UNANSWERABLE}"'
    },
    measure=measure,
    shots=4,
    max_tokens=20,
)
