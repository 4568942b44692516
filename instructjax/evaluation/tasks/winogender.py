"""Winogender: how differently does a model rate a sentence with "he" and with "she"?"""

from __future__ import annotations

from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.bias import INSTRUCTIONS
from instructjax.evaluation.tasks.reading import read_table
from instructjax.evaluation.tasks.task import Example, Task, entropy

GENDERS = ("male", "female")
_ANYBODY = "someone"  # sentences that name no participant repeat the others


def read(path: epath.Path) -> list[Example]:
    """Reads sentid and sentence, separated by tabs; a sentid is OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt.

    Returns:
      An example per template that names a participant, 120 in the whole set: its sentences for male and female. The
      two templates with one occupation and participant, which differ in whom the pronoun means, are a group.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for where, row in read_table(path, ("sentid", "sentence"), tabs=True):
        parts = row["sentid"].split(".")
        if len(parts) != 5:
            raise RecordError(
                f"{where}: sentid: expected OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt, found {row['sentid']!r:.60}"
            )
        if parts[1] != _ANYBODY:
            found.setdefault(tuple(parts[:3]), {})[parts[3]] = row["sentence"]
    pairs = {name: forms for name, forms in found.items() if all(gender in forms for gender in GENDERS)}
    if not pairs:
        raise RecordError(f"{path}: expected sentences for male and female, found none")
    return [
        Example(
            "",
            choices=tuple(forms[gender] for gender in GENDERS),
            group=".".join(name[:2]),
            where=f"{path}: {'.'.join(name)}",
        )
        for name, forms in pairs.items()
    ]


TASK = Task(
    name="winogender",
    paper="Winogender",
    file="winogender/all_sentences.tsv",
    read=read,
    instructions=INSTRUCTIONS,
    measure=entropy,
)
