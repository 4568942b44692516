"""Answers of the policy while it trains: WORKDIR/STAGE/samples.jsonl, for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.runs import metrics_file

NAME = "samples.jsonl"


def write(directory: epath.PathLike, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Adds the samples of a step, and removes those of this and later steps, which are repeated after a resume.

    Args:
      directory: WORKDIR/STAGE.
      step: the number of steps that the policy was trained for.
      samples: such as {"prompt": ..., "response": ..., "reward": 0.25, "kl": 1.5}.
    """
    kept = [line for line in read(directory) if line["step"] < step]
    lines = [*kept, *({"step": step, **sample} for sample in samples)]
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files.write_text(directory / NAME, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read(directory: epath.PathLike) -> list[dict[str, Any]]:
    """Reads all samples of a stage, in the order of their steps; [] if there are none.

    Raises:
      RecordError: a line is damaged.
    """
    path = epath.Path(directory) / NAME
    return metrics_file.read(path) if files.exists(path) else []
