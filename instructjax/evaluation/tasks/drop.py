"""DROP: questions about a passage that need counting, adding or comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import check_fields, read_json
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task
from instructjax.evaluation.text_metrics import drop_exact, drop_f1

_DATE = ("day", "month", "year")


def read(path: epath.Path) -> list[Example]:
    """Reads {NAME: {"passage", "qa_pairs": [{"question", "answer", "validated_answers"}]}}, the release's JSON.

    A reference has a line per span. The first answer is shown if the example is shown solved.
    """
    examples = []
    for name, passage in read_json(path).items():
        check_fields(passage, {"passage": str, "qa_pairs": list}, f"{path}: {name}")
        for number, pair in enumerate(passage["qa_pairs"], start=1):
            where = f"{path}: {name}: question {number}"
            check_fields(pair, {"question": str, "answer": dict}, where)
            answers = [_spans(answer, where) for answer in (pair["answer"], *pair.get("validated_answers", ()))]
            references = tuple("\n".join(spans) for spans in answers if spans)
            if not references:
                raise RecordError(f"{where}: answer: expected a number, spans or a date, found none")
            text = f"Passage: {passage['passage']}\nQuestion: {pair['question']}\nAnswer:"
            solution = " " + references[0].replace("\n", ", ")
            examples.append(Example(text, solution, references=references, group=passage["passage"], where=where))
    return examples


def _spans(answer: Any, where: str) -> list[str]:
    """Returns an answer's spans, one for a number or a date; [] for an empty answer."""
    check_fields(answer, {"number": (str, int, float), "spans": list, "date": dict}, where)
    if answer["number"]:
        return [str(answer["number"])]
    if answer["spans"]:
        return [" ".join(str(span).split()) for span in answer["spans"]]
    date = " ".join(str(answer["date"].get(part, "")) for part in _DATE).strip()
    return [date] if date else []


def measure(
    examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]
) -> dict[str, np.ndarray]:
    """Measures F1 and exact match by DROP's rules, from 0 to 100."""
    pairs = [
        (output.response or "", [reference.split("\n") for reference in example.references])
        for example, output in zip(examples, outputs, strict=True)
    ]
    return {
        "f1": np.array([100 * drop_f1(*pair) for pair in pairs]),
        "exact": np.array([100 * drop_exact(*pair) for pair in pairs]),
    }


TASK = Task(
    name="drop",
    paper="DROP",
    file="drop/drop_dataset_dev.json",
    read=read,
    instructions={"": "Answer each question using information in the preceding passage."},
    measure=measure,
    shots=4,
    max_tokens=32,
)
