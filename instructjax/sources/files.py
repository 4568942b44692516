"""The user's own files as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_collections
from etils import epath

from instructjax import files
from instructjax.data import formats, prepared, shapes
from instructjax.errors import DataError
from instructjax.records import Ranking, Record
from instructjax.sources.source import Answers, Judgement, Sample


class Files:
    """The user's own files. Only the reward model judges answers to their prompts."""

    splits: Mapping[type[Record], tuple[str, ...]] = {}  # what the stages need is in `stages/needs.py`
    merge_equal_answers = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads its section `files`."""
        self._named = config.files
        self.field_names: Mapping[str, str] = shapes.parse_names(config.files.fields, "files.fields")

    def write(self, folder: epath.Path) -> None:
        """Writes nothing, because the files exist."""

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns the files that the recipe names for a kind of record."""
        name = prepared.SET_NAMES[kind]
        paths = [files.parse(path, f"files.{name}") for path in files.split_list(self._named[name])]
        return [file for path in paths for file in formats.expand(path)]

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Raises DataError, because the rankings are part of the records."""
        raise DataError("files.rankings: expected rankings among the records, found none; this source has no labelers")

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns {}."""
        return {}

    def judge(self, answers: Answers) -> Judgement:
        """Returns an empty judgment: a run reports only the measures that need no labelers."""
        return Judgement()
