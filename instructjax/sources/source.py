"""Where a recipe's records come from, and who judges answers to its prompts.

    files     JSON lines that the user names
    sandbox   a simulated world and simulated people
    e2e       human references and ratings of the E2E NLG challenge, and public texts

A recipe declares exactly one of these sections. Whichever it is, its records end up in WORKDIR/data in the same form,
and the stages know nothing of where they came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from instructjax.records import Demonstration, Prompt, R, Ranking, Record, Text

SPLITS: Mapping[type[Record], tuple[str, ...]] = {  # that training and evaluation need
    Text: ("train", "validation"),
    Demonstration: ("train", "validation"),
    Prompt: ("train", "validation", "test"),
    Ranking: ("train", "validation"),
}

# sample(prompts, seed) yields (prompt, K sampled answers), in the order of the prompts.
Sample = Callable[[Sequence[Prompt], int], Iterator[tuple[str, list[str]]]]
Load = Callable[[type[R], str], Sequence[R]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of all models to the test prompts, for a source to judge.

    Attributes:
      prompts: one text each.
      texts: by model, one answer to each prompt.
      baseline: another sample of SFT's answers, which the models are compared with.
      load: `load(kind, split)` returns prepared records.
      rewards: `rewards(rankings)` returns the reward model's scores of the answers of each ranking.
      folder: WORKDIR/data.
    """

    prompts: Sequence[str]
    texts: Mapping[str, Sequence[str]]
    baseline: Sequence[str]
    load: Callable[[type[Any], str], Sequence[Any]]
    rewards: Callable[[Sequence[Ranking]], list[np.ndarray]]
    folder: epath.Path


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a source says of answers; both parts go into results.json as they are.

    Attributes:
      models: fields of each model's entry.
      results: fields of the whole.
    """

    models: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """One source of records.

    Attributes:
      splits: the splits that each kind of record must have.
    """

    splits: Mapping[type[Record], tuple[str, ...]]

    def write(self, folder: epath.Path) -> None:
        """Writes the records that are made or converted to FOLDER/SET.jsonl, once in a run.

        Raises:
          ConfigError, DataError, RecordError: there is no such data, or it is not what it should be.
        """

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns the files that hold the records of a kind; none if there are no such records yet."""

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Has labelers rank sampled answers (section 3.4).

        Returns:
          Rankings by training labelers, and by held-out labelers.

        Raises:
          DataError: the source has no labelers who could be asked; its rankings come with the records.
        """

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Measures answers during PPO, by what the source knows of the truth; {} if it knows nothing."""

    def judge(self, answers: Answers) -> Judgement:
        """Judges the answers of all models at the end of a run."""
