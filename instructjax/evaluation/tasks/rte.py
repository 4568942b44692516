"""RTE, of SuperGLUE: does a hypothesis follow from a text?"""

from __future__ import annotations

from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Example, Task, Tfds, accuracy

CHOICES = (" Yes", " No")
TFDS = Tfds("super_glue/rte", "validation")
LABELS = ("entailment", "not_entailment")


def read(path: epath.Path) -> list[Example]:
    """Reads {"premise", "hypothesis", "label"} per line."""
    examples = []
    for where, record in read_json_lines(path, {"premise": str, "hypothesis": str, "label": str}, TFDS):
        if record["label"] not in LABELS:
            raise RecordError(f"{where}: label: expected {' or '.join(LABELS)}, found {record['label']!r:.40}")
        hypothesis, answer = record["hypothesis"].strip().removesuffix("."), LABELS.index(record["label"])
        text = (
            f"Passage: {record['premise']}\nQuestion: From this passage can one reasonably conclude that {hypothesis}?"
            "\nAnswer:"
        )
        examples.append(Example(text, CHOICES[answer], CHOICES, answer, group=record["premise"], where=where))
    return examples


TASK = Task(
    name="rte",
    paper="RTE",
    file="superglue/RTE/val.jsonl",
    read=read,
    instructions={"": ""},
    measure=accuracy,
    shots=15,
    tfds=TFDS,
)
