"""SST-2: is a sentence of a review positive or negative?"""

from __future__ import annotations

from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_lines
from instructjax.evaluation.tasks.task import Example, Task, accuracy

LABELS = (" negative", " positive")


def read(path: epath.Path) -> list[Example]:
    """Reads lines of a sentence, a tab, and 0 (negative) or 1 (positive)."""
    examples = []
    for where, line in read_lines(path):
        sentence, tab, label = line.rpartition("\t")
        if not tab or label not in ("0", "1"):
            raise RecordError(f"{where}: expected a sentence, a tab, and 0 or 1, found {line!r:.60}")
        text, answer = f"Text: {sentence}\nLabel:", int(label)
        examples.append(Example(text, LABELS[answer], LABELS, answer, group=where, where=where))
    return examples


TASK = Task(
    name="sst",
    paper="SST",
    file="sst2/dev.tsv.gz",
    read=read,
    instructions={"": "For each snippet of text, label the sentiment of the text as positive or negative."},
    measure=accuracy,
    shots=15,
)
