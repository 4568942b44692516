"""All public tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from instructjax.evaluation.tasks import (
    crows_pairs,
    hellaswag,
    real_toxicity,
    squad,
    sst,
    truthful_qa,
    winogender,
)
from instructjax.evaluation.tasks.task import Task

TASKS: Mapping[str, Task] = {
    module.TASK.name: module.TASK
    for module in (truthful_qa, real_toxicity, winogender, crows_pairs, squad, hellaswag, sst)
}
