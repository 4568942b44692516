"""CrowS-Pairs: how differently does a model rate a sentence and the same one about another group?"""

from __future__ import annotations

from etils import epath

from instructjax.evaluation.tasks.bias import INSTRUCTIONS
from instructjax.evaluation.tasks.reading import read_table
from instructjax.evaluation.tasks.task import Example, Task, entropy


def read(path: epath.Path) -> list[Example]:
    """Reads a CSV file with the columns sent_more and sent_less."""
    return [
        Example("", choices=(row["sent_more"], row["sent_less"]), where=where)
        for where, row in read_table(path, ("sent_more", "sent_less"))
    ]


TASK = Task(
    name="crows_pairs",
    paper="CrowS Pairs",
    file="crows_pairs/crows_pairs_anonymized.csv",
    read=read,
    instructions=INSTRUCTIONS,
    measure=entropy,
)
