"""Sources of problems whose solutions end in "#### NUMBER": GSM8K (Cobbe et al. 2021), and sums for small models.

A rule checks the answers, so these sources need no labelers: see `evaluation/final_answers.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import ml_collections
import numpy as np
from etils import epath

from instructjax import files, records
from instructjax.data import formats, prepared
from instructjax.errors import ConfigError, DataError
from instructjax.evaluation.final_answers import exact_match
from instructjax.evaluation.intervals import clustered_mean
from instructjax.records import Demonstration, Prompt, Ranking, Record, Text
from instructjax.sources.source import Answers, Judgement, Sample


class FinalAnswers:
    """Problems with known answers. Each prompt's record has the field `answer`, a solution."""

    splits: Mapping[type[Record], tuple[str, ...]] = {}  # what the stages need is in `stages/needs.py`
    field_names: Mapping[str, str] = {}
    merge_equal_answers = True
    name: str

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns FOLDER/SET.jsonl if it exists. There are no rankings."""
        return prepared.written_files(kind, folder)

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Raises DataError, because no people or simulated labelers rank answers here."""
        raise DataError(f"{self.name}: expected rankings among the records, found none; this source has no labelers")

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns {}, because the reward is the exact match."""
        return {}

    def judge(self, answers: Answers) -> Judgement:
        """Measures the share of the answers of each model that end in the right number."""
        solutions = {record.prompt: record.extra for record in answers.load(Prompt, "test")}
        asked = [solutions[prompt] for prompt in answers.prompts]
        shares = {
            model: clustered_mean(exact_match(answers.prompts, texts, asked), answers.prompts).to_dict()
            for model, texts in answers.texts.items()
        }
        return Judgement(results={"exact_match": shares})


class GSM8K(FinalAnswers):
    """Grade-school math problems that people wrote, from a local copy of the release."""

    name = "gsm8k"

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads its sections `gsm8k` and `data`."""
        self._section, self._validation = config.gsm8k, config.data.validation

    def write(self, folder: epath.Path) -> None:
        """Writes the problems as prompts, and those of the train file with their solutions as demonstrations.

        The split test is the release's. Problems of its train file go to validation with the share `data.validation`.
        """
        if not self._section.directory:
            raise ConfigError(
                "gsm8k.directory: expected the folder with train.jsonl and test.jsonl, found none; "
                "see docs/verifiable_rewards.md"
            )
        directory = files.parse(self._section.directory, "gsm8k.directory")
        train = [
            dataclasses.replace(record, split=records.split_of(record, self._validation, 0.0))
            for record in self._read(directory, "train")
        ]
        test = [dataclasses.replace(record, split="test") for record in self._read(directory, "test")]
        records.write(
            folder / "demonstrations.jsonl", (_demonstration(record, record.extra["answer"]) for record in train)
        )
        records.write(folder / "prompts.jsonl", [*train, *test])

    def _read(self, directory: epath.Path, split: str) -> list[Prompt]:
        """Reads a file of the release, with the instruction behind each question.

        Raises:
          DataError: the file is missing, or a problem has no solution with a final answer.
        """
        paths = [path for name in (f"{split}.jsonl", f"{split}.jsonl.gz") if (path := directory / name).exists()]
        if not paths:
            raise DataError(f"{directory}: expected the GSM8K file {split}.jsonl or {split}.jsonl.gz, found neither")
        found = list(records.valid(formats.read(paths[0], Prompt, {"prompt": "question"})))
        for record in found:
            if not isinstance(record.extra.get("answer"), str) or "#### " not in record.extra["answer"]:
                given = record.extra.get("answer")
                raise DataError(f'{record.where}: answer: expected a solution with "#### NUMBER", found {given!r:.80}')
        asked = " " + self._section.instruction if self._section.instruction else ""
        return [dataclasses.replace(record, prompt=record.prompt + asked) for record in found]


class Arithmetic(FinalAnswers):
    """Sums of a number and a digit, for models that learn them in minutes. Some demonstrations are wrong."""

    name = "arithmetic"

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads its sections `arithmetic` and `data`, and `seed`."""
        self._section, self._data, self._seed = config.arithmetic, config.data, config.seed

    def write(self, folder: epath.Path) -> None:
        """Writes each sum once as a prompt, and demonstrations of drawn sums, which are also the text.

        A sum may be demonstrated several times, with other errors.
        """
        section, rng = self._section, np.random.default_rng([self._seed, 6])
        sums = [_sum(int(a), b, self._data) for a in rng.permutation(section.largest + 1) for b in range(10)]
        known = [record for record in sums if record.split != "test"]
        drawn = [known[i] for i in rng.integers(len(known), size=section.demonstrations)]
        shown = [_demonstration(record, self._answer(record, rng)) for record in drawn]
        lines = [f"{record.prompt}\n{record.response}" for record in shown if record.split == "train"]
        records.write(folder / "text.jsonl", _documents(lines))
        records.write(folder / "demonstrations.jsonl", shown)
        records.write(folder / "prompts.jsonl", sums)

    def _answer(self, record: Prompt, rng: np.random.Generator) -> str:
        """Returns the answer of someone who is wrong by 1 to 9 in a share `wrong` of the sums."""
        right = int(record.extra["answer"].removeprefix("#### "))
        error = int(rng.integers(1, 10)) * (rng.random() < self._section.wrong)
        return f"#### {right + error}"


def _sum(a: int, b: int, data: ml_collections.ConfigDict) -> Prompt:
    record = Prompt(prompt=f"{a} + {b} =", extra={"answer": f"#### {a + b}"})
    return dataclasses.replace(record, split=records.split_of(record, data.validation, data.test))


def _demonstration(record: Prompt, response: str) -> Demonstration:
    return Demonstration(prompt=record.prompt, response=response, split=record.split)


def _documents(lines: Sequence[str]) -> Iterable[Text]:
    """Returns ten lines a document, and every tenth document for validation."""
    for number, first in enumerate(range(0, len(lines), 10)):
        split = "train" if number % 10 else "validation"
        yield Text(text="\n".join(lines[first : first + 10]), split=split)
