"""The E2E NLG Challenge as a source, with demonstrations and rankings by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_collections
from etils import epath

from instructjax import files, records
from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError
from instructjax.evaluation import agreement
from instructjax.records import Demonstration, Ranking, Record
from instructjax.sources import e2e_records, facts, texts
from instructjax.sources.source import SPLITS, Answers, Judgement, Sample

_ALL = ("train", "validation", "test")


class E2E:
    """Human references and ratings, and public texts for pretraining, from a local copy."""

    splits: Mapping[type[Record], tuple[str, ...]] = {
        **SPLITS,
        Demonstration: _ALL,
        Ranking: _ALL,
    }  # the test split has human ratings, too
    field_names: Mapping[str, str] = {}
    merge_equal_answers = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads its sections `e2e` and `data`."""
        self._section, self._data = config.e2e, config.data

    def write(self, folder: epath.Path) -> None:
        """Converts the data set and the texts to records."""
        if not self._section.directory:
            raise ConfigError("e2e.directory: expected the folder of all data sets, found none; see docs/e2e.md")
        root, data = files.parse(self._section.directory, "e2e.directory"), self._data
        human = e2e_records.load(root / "e2e_human_rankings", self._section.aspects, data.validation, data.test)
        documents = [
            record for name in self._section.texts for record in texts.load(root, name, validation=data.validation)
        ]
        records.write(folder / "text.jsonl", documents)
        records.write(folder / "demonstrations.jsonl", human.demonstrations)
        records.write(folder / "rankings.jsonl", human.rankings)
        records.write(folder / "prompts.jsonl", human.prompts)

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns FOLDER/SET.jsonl."""
        return prepared.written_files(kind, folder)

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Raises DataError, because the rankings are part of the records."""
        raise DataError("e2e: expected rankings among the records, found none; this source has no labelers")

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns {}. Facts are counted at the end of the run."""
        return {}

    def judge(self, answers: Answers) -> Judgement:
        """Measures the reward model's accuracy on held-out rankings, and the share of facts that each model states."""
        single = list(answers.load(Ranking, "test"))
        references = answers.load(Demonstration, "test")
        stated = {model: facts.share_of_facts(answers.prompts, found) for model, found in answers.texts.items()}
        stated["references"] = facts.share_of_facts(
            [record.prompt for record in references], [record.response for record in references]
        )
        against = agreement.compare_with_raters(
            list(answers.load(Ranking, "train")), single, e2e_records.average(single), answers.rewards
        )
        shares = {model: estimate.to_dict() for model, estimate in stated.items()}
        return Judgement(results={"human": {**against, "facts_stated": shares}})
