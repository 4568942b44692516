"""WMT 2015, French to English: translations of comments on news."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_lines
from instructjax.evaluation.tasks.task import Example, Judge, Output, Pooled, Task
from instructjax.evaluation.text_metrics import bleu_counts

_SOURCE, _REFERENCE = "-src.fr.sgm", "-ref.en.sgm"
_DOCUMENT = re.compile(r'<doc\b.*?\bdocid="([^"]*)"')
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*)</seg>")


def read(path: epath.Path) -> list[Example]:
    """Reads NAME-src.fr.sgm, and the translations from NAME-ref.en.sgm next to it.

    Sentences of a document are not independent, so a document is a group.
    """
    if not path.name.endswith(_SOURCE):
        raise RecordError(f"{path}: expected a file whose name ends in {_SOURCE}, found {path.name}")
    other = path.parent / (path.name.removesuffix(_SOURCE) + _REFERENCE)
    sources, references = _segments(path), _segments(other)
    if len(sources) != len(references):
        raise RecordError(f"{other}: expected {len(sources)} segments, as in {path.name}, found {len(references)}")
    return [
        Example(f"French: {text}\nEnglish:", f" {english}", references=(english,), group=document, where=where)
        for (where, document, text), (_, _, english) in zip(sources, references, strict=True)
    ]


def _segments(path: epath.Path) -> list[tuple[str, str, str]]:
    """Returns the (place, document, text) of each segment. The format is not XML: a line is a tag or a segment."""
    found, document = [], ""
    for where, line in read_lines(path):
        if opened := _DOCUMENT.search(line):
            document = opened[1]
        elif segment := _SEGMENT.search(line):
            found.append((where, document, " ".join(html.unescape(segment[1]).split())))
    if not found:
        raise RecordError(f"{path}: expected lines with <seg>, found none")
    return found


def measure(examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]) -> dict[str, Pooled]:
    """Measures the BLEU of all translations together, from 0 to 100, as sacrebleu does."""
    answers = [output.response or "" for output in outputs]
    return {"BLEU": Pooled(*bleu_counts(answers, [example.references[0] for example in examples]))}


TASK = Task(
    name="wmt15_fr_en",
    paper="FR → EN 15",
    file="wmt15/newsdiscusstest2015-fren-src.fr.sgm",
    read=read,
    instructions={"": "Translate the following sentences from French into English."},
    measure=measure,
    shots=15,
    max_tokens=100,
)
