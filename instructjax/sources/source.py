"""The interface of a source, which provides a recipe's records and judges answers to its prompts.

    files       the user's own files of JSON lines
    sandbox     a simulated world with simulated labelers
    e2e         human references and ratings of the E2E NLG Challenge, and public texts
    gsm8k       math problems whose answers a rule checks
    arithmetic  sums, checked by the same rule

A recipe declares exactly one of these sections. All sources write their records to WORKDIR/data
in the same form, so the stages do not depend on the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from instructjax.records import Demonstration, Prompt, Ranking, Record, Text

SPLITS: Mapping[type[Record], tuple[str, ...]] = {  # the splits that training and evaluation need
    Text: ("train", "validation"),
    Demonstration: ("train", "validation"),
    Prompt: ("train", "validation", "test"),
    Ranking: ("train", "validation"),
}

# `sample(prompts, seed)` yields (prompt, K sampled answers), in the order of the prompts.
Sample = Callable[[Sequence[Prompt], int], Iterator[tuple[str, list[str]]]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of all models to the test prompts, for a source to judge.

    Attributes:
      prompts: the texts of the test prompts.
      texts: for each model, one answer per prompt.
      baseline: another sample of SFT's answers, with which all models are compared.
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
    """A source's judgment of answers. Both parts are copied into results.json.

    Attributes:
      models: for each model, fields of its entry.
      results: fields at the top level.
    """

    models: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """A source of records.

    Attributes:
      splits: the splits that each kind of record must have, whatever the stages.
      field_names: paths into the files' fields, by our names; see `data/shapes.py`.
      merge_equal_answers: whether equal answers of a ranking get one score; see `data/selection.py`. Simulated labelers
        perceive each sample on its own.
    """

    splits: Mapping[type[Record], tuple[str, ...]]
    field_names: Mapping[str, str]
    merge_equal_answers: bool

    def write(self, folder: epath.Path) -> None:
        """Writes records that are generated or converted to FOLDER/SET.jsonl. Called once per run.

        Raises:
          ConfigError, DataError, RecordError: the data is missing or invalid.
        """

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns the files with the records of a kind, or [] if there are none yet."""

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Has labelers rank sampled answers (section 3.4).

        Returns:
          Rankings by training labelers, and rankings by held-out labelers.

        Raises:
          DataError: the source has no labelers, because its rankings are part of the records.
        """

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns metrics of answers during PPO, such as their true quality; {} if the source has none."""

    def judge(self, answers: Answers) -> Judgement:
        """Judges the answers of all models at the end of a run."""
