"""The form of a public task: examples in, prompts and metrics out (appendix D of the paper).

    answered   the model continues the prompt at temperature 0, and its text is cut at the first line break
    chosen     the model scores each of several continuations of the prompt

A prompt is an instruction, solved examples (zero-, one- or few-shot), and the example to solve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax.errors import DataError

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float] | np.ndarray]  # (questions, answers) -> [0, 1]
_BREAK = "\n\n"  # between the parts of a prompt


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a task.

    Attributes:
      text: its part of the prompt.
      solution: what follows if the example is shown solved.
      choices: the continuations to choose from; () if the model answers freely.
      answer: the number of the right choice.
      references: right answers.
      question: what a judge of the answer reads.
      group: examples of a group share text, so a solved one is not shown before the others.
      where: its place, for errors.
    """

    text: str
    solution: str = ""
    choices: tuple[str, ...] = ()
    answer: int | None = None
    references: tuple[str, ...] = ()
    question: str = ""
    group: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Output:
    """What a model made of an example.

    Attributes:
      response: its answer, cut at the first line break; None if it chose.
      log_probs: log-probability of each choice, summed over its tokens, in nats.
      tokens: the number of tokens of each choice.
    """

    response: str | None = None
    log_probs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A metric that is a function of sums over examples, and not their mean, such as BLEU.

    Attributes:
      counts: float64[n, m], what each example adds to the sums.
      score: `score(sums)` computes the metric from float64[m].
    """

    counts: np.ndarray
    score: Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A set of tfds with the examples of a task.

    Attributes:
      name: of the set, such as "super_glue/rte".
      split: the one with the examples.
      record: `record(example)` returns what a line of the task's file would have.
    """

    name: str
    split: str
    record: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


Measure = Callable[[Sequence[Example], Sequence[Output], Mapping[str, Judge]], Mapping[str, np.ndarray | Pooled]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A public task.

    Attributes:
      name: such as "hellaswag".
      paper: its name in Table 14.
      file: the default file, below the folder of the data.
      read: `read(path)` returns its examples. With `tfds`, `path` may be the folder of the prepared set.
      instructions: {prompt type: text before everything else}. The types are those of Table 14; "" stands for its
        "zero-shot" and "few-shot".
      measure: `measure(examples, outputs, judges)` returns {metric: float64[n] or `Pooled`}, with names as in Table 14.
        Metrics whose judge is missing are left out.
      shots: the number of solved examples of the paper's few-shot prompt; 0 if it has none.
      max_tokens: of an answer.
      judges: the judges that it can use.
      tfds: the same examples in tfds; None if it does not have them, or not in their order.
    """

    name: str
    paper: str
    file: str
    read: Callable[[epath.Path], list[Example]]
    instructions: Mapping[str, str]
    measure: Measure
    shots: int = 0
    max_tokens: int = 0
    judges: tuple[str, ...] = ()
    tfds: Tfds | None = None


def make_prompts(
    task: Task, examples: Sequence[Example], prompt_type: str, shots: int, seed: int = 0
) -> tuple[list[str], list[Example]]:
    """Writes the prompt of each example: instruction, solved examples, and the example.

    The solved examples are drawn from the same file. They, and others of their groups, are not evaluated.

    Args:
      task: gives the instruction.
      examples: all of the task.
      prompt_type: a key of `task.instructions`.
      shots: the number of solved examples.
      seed: draws them.

    Returns:
      The prompts, and the examples that they ask for.

    Raises:
      DataError: the task does not show solved examples, or has too few.
    """
    solved = [example for example in examples if example.solution]
    if shots and not task.shots:
        raise DataError(f"--shots: expected 0 for {task.name}, whose prompts show no solved examples, found {shots}")
    groups = list(dict.fromkeys(example.group for example in solved))
    if shots and shots >= len(groups):
        raise DataError(f"--shots: expected fewer than the {len(groups)} examples of {task.name}, found {shots}")
    drawn = set(np.random.default_rng(seed).permutation(len(groups))[:shots].tolist()) if shots else set()
    shown = [groups[i] for i in sorted(drawn)]
    last = {example.group: example for example in solved}
    before = [last[group].text + last[group].solution for group in shown]
    instruction = [text] if (text := task.instructions[prompt_type]) else []
    asked = [example for example in examples if example.group not in shown]
    return [_BREAK.join([*instruction, *before, example.text]) for example in asked], asked


def mean_log_probs(output: Output) -> np.ndarray:
    """Computes the log-probability of each choice per token, in nats. The paper chooses the highest."""
    return np.array(output.log_probs, np.float64) / np.array(output.tokens, np.float64)


def accuracy(examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]) -> dict[str, Any]:
    """Measures how often the right choice has the highest log-probability per token.

    "acc" and "acc_norm" are those of lm-evaluation-harness: the highest log-probability, and the highest per character,
    where a space before a choice does not count.
    """
    found = []
    for example, output in zip(examples, outputs, strict=True):
        total = np.array(output.log_probs, np.float64)
        characters = [len(choice.strip()) for choice in example.choices]
        found.append([np.argmax(x) == example.answer for x in (mean_log_probs(output), total, total / characters)])
    return dict(zip(("accuracy", "acc", "acc_norm"), np.array(found, np.float64).T, strict=True))


def entropy(examples: Sequence[Example], outputs: Sequence[Output], judges: Mapping[str, Judge]) -> dict[str, Any]:
    """Measures the entropy in bits of the choices' probabilities, normalized to 1. Unbiased is 1 for two choices."""
    log_probs = np.array([output.log_probs for output in outputs], np.float64)
    log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    return {"entropy": -np.sum(np.exp(log_probs) * log_probs, axis=1) / np.log(2)}
