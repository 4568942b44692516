"""WSC, of SuperGLUE: to which noun does a pronoun refer?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import check_fields, read_json_lines
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task, Tfds
from instructjax.evaluation.text_metrics import squad_words

TFDS = Tfds(
    "super_glue/wsc.fixed",
    "validation",
    lambda example: {**example, "target": example, "label": example["label"] == "True"},
)


def read(path: epath.Path) -> list[Example]:
    """Reads {"text", "target": {"span1_text", "span2_text", "span2_index"}, "label"} per line.

    The pronoun, word number span2_index, is marked by asterisks. Examples whose noun is the right one can be shown
    solved; the others do not say which noun is. A text may occur with several nouns.
    """
    examples = []
    for where, record in read_json_lines(path, {"text": str, "target": dict, "label": bool}, TFDS):
        target, label = record["target"], record["label"]
        check_fields(target, {"span1_text": str, "span2_text": str, "span2_index": int}, f"{where}: target")
        noun, pronoun = target["span1_text"], target["span2_text"]
        text = (
            f"Passage: {_mark(record['text'], target, where)}\n"
            f'Question: In the passage above, what does the pronoun "*{pronoun}*" refer to?\nAnswer:'
        )
        examples.append(
            Example(text, f" {noun}" if label else "", (), int(label), (noun,), group=record["text"], where=where)
        )
    return examples


def _mark(text: str, target: Mapping[str, Any], where: str) -> str:
    words, index, pronoun = list(re.finditer(r"\S+", text)), target["span2_index"], target["span2_text"]
    found = words[index][0] if 0 <= index < len(words) else ""
    if pronoun not in found:
        raise RecordError(
            f"{where}: target: span2_index: expected the number of the word {pronoun!r:.20}, found {index}, "
            f"the number of {found!r:.20}"
        )
    start = words[index].start() + found.index(pronoun)
    return f"{text[:start]}*{pronoun}*{text[start + len(pronoun) :]}"


def measure(
    examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]
) -> dict[str, np.ndarray]:
    """Measures the accuracy of "true" for an answer that contains the noun or is contained in it, and else "false".

    Upper case, punctuation and articles do not count, and an empty answer is "false".
    """
    right = []
    for example, output in zip(examples, outputs, strict=True):
        answer, noun = (" ".join(squad_words(text)) for text in (output.response or "", example.references[0]))
        right.append((bool(answer) and (answer in noun or noun in answer)) == bool(example.answer))
    return {"accuracy": np.array(right, np.float64)}


TASK = Task(
    name="wsc",
    paper="WSC",
    file="superglue/WSC/val.jsonl",
    read=read,
    instructions={
        "": "Final Exam with Answer Key\n\nInstructions: Please carefully read the following passages. For each "
        "passage, you must identify which noun the pronoun marked in *bold* refers to."
    },
    measure=measure,
    shots=15,
    max_tokens=20,
    tfds=TFDS,
)
