"""All public tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from instructjax.evaluation.tasks import (
    crows_pairs,
    drop,
    hellaswag,
    quac,
    real_toxicity,
    rte,
    squad,
    sst,
    summaries,
    truthful_qa,
    winogender,
    wmt15,
    wsc,
)
from instructjax.evaluation.tasks.task import Task

TASKS: Mapping[str, Task] = {  # in the order of Table 14
    task.name: task
    for task in (
        winogender.TASK,
        crows_pairs.TASK,
        real_toxicity.TASK,
        truthful_qa.TASK,
        hellaswag.TASK,
        wsc.TASK,
        rte.TASK,
        sst.TASK,
        quac.TASK,
        squad.TASK,
        drop.TASK,
        wmt15.TASK,
        summaries.CNN_DM,
        summaries.TLDR,
    )
}
