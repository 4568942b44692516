"""HellaSwag: which of four endings continues a text?"""

from __future__ import annotations

from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Example, Task, Tfds, accuracy

TFDS = Tfds("hellaswag", "validation", lambda example: {**example, "ctx": example["context"]})


def read(path: epath.Path) -> list[Example]:
    """Reads {"ctx", "label", "endings"} per line. An ending follows its context after a space."""
    examples = []
    for where, record in read_json_lines(path, {"ctx": str, "label": int, "endings": list}, TFDS):
        endings, label = record["endings"], record["label"]
        if not all(isinstance(ending, str) for ending in endings) or not 0 <= label < len(endings):
            raise RecordError(f"{where}: endings: expected texts, one of them number {label}, found {endings!r:.60}")
        choices = tuple(f" {ending}" for ending in endings)
        examples.append(Example(record["ctx"], choices[label], choices, label, group=where, where=where))
    return examples


TASK = Task(
    name="hellaswag",
    paper="HellaSwag",
    file="hellaswag/val.jsonl.gz",
    read=read,
    instructions={"": "Complete each independent paragraph using common-sense reasoning."},
    measure=accuracy,
    shots=15,
    tfds=TFDS,
)
