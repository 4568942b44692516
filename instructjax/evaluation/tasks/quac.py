"""QuAC: a dialogue of questions about a section of Wikipedia."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import DataError, RecordError
from instructjax.evaluation.tasks.reading import check_fields, read_json
from instructjax.evaluation.tasks.task import Example, Judge, Output, Pooled, Task
from instructjax.evaluation.text_metrics import CANNOTANSWER, quac_f1, quac_human_f1, squad_exact

UNANSWERABLE = "I don't know."
MIN_HUMAN_F1 = 0.4  # questions on which people agree less do not count


def read(path: epath.Path) -> list[Example]:
    """Reads {"data": [{"title", "section_title", "paragraphs": [{"context", "id", "qas"}]}]}, the release's JSON.

    The earlier questions of a dialogue stand before a question, with their answers. If at least half of the references
    say that the text has no answer, none other counts, and else those do not.
    """
    found = read_json(path)
    check_fields(found, {"data": list}, str(path))
    examples: list[Example] = []
    for number, section in enumerate(found["data"], start=1):
        where = f"{path}: section {number}"
        check_fields(section, {"title": str, "section_title": str, "paragraphs": list}, where)
        for paragraph in section["paragraphs"]:
            check_fields(paragraph, {"context": str, "id": str, "qas": list}, where)
            examples += _dialogue(f"{section['title']} - {section['section_title']}", paragraph, str(path))
    return examples


def _dialogue(title: str, paragraph: Mapping[str, Any], path: str) -> list[Example]:
    context = paragraph["context"].removesuffix(CANNOTANSWER).strip()
    text, examples = f"TITLE: {title}\n\nPARAGRAPH: {context}", []
    for qa in paragraph["qas"]:
        where = f"{path}: {qa.get('id', paragraph['id']) if isinstance(qa, dict) else paragraph['id']}"
        check_fields(qa, {"question": str, "answers": list}, where)
        answers = []
        for answer in qa["answers"]:
            check_fields(answer, {"text": str}, f"{where}: answers")
            answers.append(answer["text"])
        if not answers:
            raise RecordError(f"{where}: answers: expected at least one, found none")
        spans = [answer for answer in answers if answer != CANNOTANSWER]
        references = tuple(spans) if 2 * len(spans) > len(answers) else (CANNOTANSWER,)
        shown = " " + (UNANSWERABLE if answers[0] == CANNOTANSWER else answers[0])
        text += f"\n\nQ: {qa['question']}\n\nA:"
        examples.append(Example(text, shown, references=references, group=paragraph["id"], where=where))
        text += shown
    return examples


def measure(examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]) -> dict[str, Pooled]:
    """Measures F1 by QuAC's rules, and HEQ: how often it is at least that of people. All are from 0 to 100.

    HEQ-Q counts questions, and HEQ-D dialogues in which it holds for all questions. Questions on which people agree
    less than `MIN_HUMAN_F1` do not count.

    Raises:
      DataError: no question counts.
    """
    texts = [_answer(output.response or "") for output in outputs]
    scores = np.array([quac_f1(text, e.references) for text, e in zip(texts, examples, strict=True)])
    human = np.array([quac_human_f1(example.references) for example in examples])
    counted = human >= MIN_HUMAN_F1
    if not counted.any():
        raise DataError(f"quac: expected a question on which people agree to {MIN_HUMAN_F1} F1, found none")
    names = np.unique([example.group for example in examples], return_inverse=True)[1]
    failed = np.bincount(names, weights=counted & (scores < human)) > 0
    first = np.zeros(len(examples), bool)
    first[np.unique(names, return_index=True)[1]] = True
    return {
        "f1": _share(scores, counted),
        "HEQ-Q": _share(scores >= human, counted),
        "HEQ-D": _share(~failed[names], first),
    }


def _share(values: np.ndarray, counted: np.ndarray) -> Pooled:
    """Returns the mean of values over those that are counted, times 100."""
    counts = np.stack([np.where(counted, values, 0.0), counted], axis=1).astype(np.float64)
    return Pooled(counts, lambda sums: 100 * sums[0] / sums[1] if sums[1] else np.nan)


def _answer(text: str) -> str:
    return CANNOTANSWER if squad_exact(text, [UNANSWERABLE, CANNOTANSWER]) else text


TASK = Task(
    name="quac",
    paper="QuAC",
    file="quac/val_v0.2.json",
    read=read,
    instructions={
        "": "Answer each question using information in the preceding background paragraph. If there is not enough "
        f'information provided, answer with "{UNANSWERABLE}"'
    },
    measure=measure,
    shots=2,
    max_tokens=50,
)
