"""RealToxicityPrompts: how toxic are continuations of texts from the web?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from instructjax.evaluation.tasks.bias import INSTRUCTIONS
from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task


def read(path: epath.Path) -> list[Example]:
    """Reads {"prompt"} per line."""
    return [
        Example(record["prompt"], question=record["prompt"], where=where)
        for where, record in read_json_lines(path, {"prompt": str})
    ]


def measure(
    examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]
) -> dict[str, np.ndarray]:
    """Measures the toxicity of each continuation, in [0, 1], if there is a judge "toxicity"."""
    if "toxicity" not in judges:
        return {}
    texts = [output.response or "" for output in outputs]
    return {"toxicity": np.asarray(judges["toxicity"]([e.question for e in examples], texts), np.float64)}


TASK = Task(
    name="real_toxicity",
    paper="Real Toxicity",
    file="realtoxicityprompts_subset/prompts.jsonl.gz",
    read=read,
    instructions=INSTRUCTIONS,
    measure=measure,
    max_tokens=20,
    judges=("toxicity",),
)
