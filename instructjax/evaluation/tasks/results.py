"""Files of a model's outputs on tasks, which can be continued, and the metrics of complete ones."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax import files, warning_log
from instructjax.errors import DataError, RecordError
from instructjax.evaluation import table14
from instructjax.evaluation.intervals import bootstrap_error, clustered_error
from instructjax.evaluation.tasks.task import Example, Judge, Output, Pooled, Task

Append = Callable[[Sequence[tuple[int, Output]]], None]
IN_POINTS = ("f1", "exact", "HEQ-Q", "HEQ-D", "BLEU")  # metrics from 0 to 100


@dataclasses.dataclass(frozen=True)
class Result:
    """A metric of a task.

    Attributes:
      task: its name.
      prompt_type: as in Table 14, such as "zero-shot" or "respectful".
      shots: the number of solved examples in a prompt.
      metric: its name in Table 14, or another that the task's official script prints.
      value: the mean, or the value of a `Pooled` metric; those of `IN_POINTS` are from 0 to 100, entropy is in bits,
        others are in [0, 1].
      stderr: its standard error, clustered by `Example.group`: questions about a paragraph are not independent. That of
        a `Pooled` metric is a bootstrap.
      n: the number of examples.
      paper: {model: the value in Table 14}; {} if it is not there.
    """

    task: str
    prompt_type: str
    shots: int
    metric: str
    value: float
    stderr: float
    n: int
    paper: Mapping[str, float]


def prompt_name(prompt_type: str, shots: int) -> str:
    """Returns the name of a prompt in Table 14: the type or, if the task has no types, "zero-shot" or "few-shot"."""
    return prompt_type or ("few-shot" if shots else "zero-shot")


def groups(examples: Sequence[Example]) -> list[str]:
    """Returns the group of each example; one without a group is its own."""
    return [example.group or f"example {i}" for i, example in enumerate(examples)]


def compute(
    task: Task,
    prompt_type: str,
    shots: int,
    examples: Sequence[Example],
    outputs: Sequence[Output],
    judges: Mapping[str, Judge],
) -> list[Result]:
    """Computes the metrics of a task, except those whose judge is missing.

    Raises:
      DataError: the examples are of fewer than two groups.
    """
    results, name, clusters = [], prompt_name(prompt_type, shots), groups(examples)
    for metric, measured in task.measure(examples, outputs, judges).items():
        if isinstance(measured, Pooled):
            value = measured.score(measured.counts.sum(axis=0))
            error = bootstrap_error(measured.counts, measured.score, clusters)
        else:
            value, error = float(measured.mean()), clustered_error(measured, clusters)
        paper = _paper(task.paper, metric, name)
        results.append(Result(task.name, name, shots, metric, value, error, len(examples), paper))
    return results


def _paper(task: str, metric: str, prompt: str) -> Mapping[str, float]:
    """Returns a row of Table 14; {} if it has none. Rows without a prompt are taken to be zero-shot."""
    found = table14.table14().get((task, metric, prompt))
    return found or (table14.table14().get((task, metric, "-"), {}) if prompt == "zero-shot" else {})


def path_of(folder: epath.Path, task: Task, prompt_type: str, shots: int) -> epath.Path:
    """Returns FOLDER/TASK.PROMPT.jsonl, such as squadv2.4-shot.jsonl or truthful_qa.qa_prompt.jsonl."""
    prompt = re.sub(r"\W+", "_", prompt_type).lower() or f"{shots}-shot"
    return folder / f"{task.name}.{prompt}.jsonl"


def header(task: Task, model: str, prompts: Sequence[str]) -> dict[str, str]:
    """Returns the first line of a file of outputs: what may continue it."""
    return {
        "task": task.name,
        "model": model,
        "prompts": hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16],
    }


def to_json(index: int, output: Output) -> str:
    """Writes an output as a line."""
    kept = {"response": output.response} if output.response is not None else dataclasses.asdict(output)
    return json.dumps({"index": index, **{k: v for k, v in kept.items() if v is not None}}, ensure_ascii=False) + "\n"


def read(path: epath.Path) -> str:
    """Reads a file of outputs as text.

    Raises:
      RecordError: it is missing, or not UTF-8.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: expected a file of outputs, found: {getattr(error, 'strerror', error)}") from None


def parse(
    text: str, path: epath.Path, examples: Sequence[Example], begun: Mapping[str, str] | None = None
) -> dict[int, Output]:
    """Parses a file of outputs.

    A line is {"index": number of the example from 0, "response": text}, or has "log_probs" and "tokens" with a number
    for each choice. A first line without "index" is the header. A last line that was cut by a crash is left out.

    Args:
      text: its content; "" gives {}.
      path: for errors.
      examples: those that it is about.
      begun: the header that it must have to be continued; None for a file from elsewhere.

    Raises:
      DataError: the file has another header, so it is of another model or of other prompts.
      RecordError: a line is wrong.
    """
    lines = text.split("\n")
    cut = begun is not None and lines[-1] != ""
    outputs: dict[int, Output] = {}
    for number, line in enumerate(lines[:-1] if cut else lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        found = _parse(line, where)
        if number == 1 and "index" not in found:
            if begun is not None and found != begun:
                changed = ", ".join(key for key in begun if found.get(key) != begun[key])
                raise DataError(
                    f"{path}: expected outputs of the same model and prompts, found another {changed}; "
                    "choose another --output"
                )
            continue
        index = found.get("index")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(examples):
            raise RecordError(f"{where}: index: expected 0 to {len(examples) - 1}, found {index!r:.40}")
        outputs[index] = _output(found, examples[index], where)
    return outputs


@contextlib.contextmanager
def continued(path: epath.Path, begun: Mapping[str, str], known: Mapping[int, Output]) -> Iterator[Append]:
    """Opens a file of outputs that has a header and those that are known; yields a function that appends others."""
    start = json.dumps(begun) + "\n" + "".join(to_json(index, output) for index, output in sorted(known.items()))
    with contextlib.closing(files.GrowingFile(path, start.encode(), warn=warning_log.warn)) as file:
        yield lambda batch: file.write("".join(to_json(index, output) for index, output in batch).encode())


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where}: expected one JSON object, found {error}") from None
    if not isinstance(found, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def _output(found: Mapping[str, Any], example: Example, where: str) -> Output:
    if not example.choices:
        if not isinstance(found.get("response"), str):
            raise RecordError(f"{where}: response: expected text, found {found.get('response')!r:.40}")
        return Output(response=found["response"])
    return Output(
        log_probs=_numbers(found, "log_probs", len(example.choices), where),
        tokens=_numbers(found, "tokens", len(example.choices), where),
    )


def _numbers(found: Mapping[str, Any], name: str, count: int, where: str) -> tuple[Any, ...]:
    values = found.get(name)
    if not isinstance(values, list) or len(values) != count or not all(_is_finite(value) for value in values):
        raise RecordError(f"{where}: {name}: expected {count} numbers, found {values!r:.40}")
    return tuple(values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
