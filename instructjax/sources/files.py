"""The user's own files and public sets as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from instructjax import files, records
from instructjax.data import formats, pairs, prepared, shapes
from instructjax.errors import DataError
from instructjax.records import Ranking, Record
from instructjax.sources import public
from instructjax.sources.source import Answers, Judgement, Sample


class Files:
    """The user's own files, and public sets. Only the reward model judges answers to their prompts."""

    splits: Mapping[type[Record], tuple[str, ...]] = {}  # what the stages need is in `stages/needs.py`
    merge_equal_answers = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Takes a whole recipe and reads its section `files`."""
        self._named = config.files
        self.field_names: Mapping[str, str] = shapes.parse_names(config.files.fields, "files.fields")

    def write(self, folder: epath.Path) -> None:
        """Writes the records of the public sets that the recipe names, with pairs of one prompt as one ranking."""
        for kind, name in prepared.SET_NAMES.items():
            for public_set in self._public_sets(name):
                given: Any = records.valid(public.read(public_set, kind, f"files.{name}", self._named.public))
                found = pairs.merge_pairs(given) if kind is Ranking else given
                records.write(folder / f"{public_set}_{name}.jsonl", found)

    def files(self, kind: type[Record], folder: epath.Path) -> list[epath.Path]:
        """Returns the files that the recipe names for a kind of record, and those that `write` has written."""
        name = prepared.SET_NAMES[kind]
        named = [path for path in files.split_list(self._named[name]) if not path.startswith(public.PREFIX)]
        paths = [files.parse(path, f"files.{name}") for path in named]
        written = [folder / f"{public_set}_{name}.jsonl" for public_set in self._public_sets(name)]
        return [file for path in paths for file in formats.expand(path)] + written

    def _public_sets(self, name: str) -> list[str]:
        named = files.split_list(self._named[name])
        return [path.removeprefix(public.PREFIX) for path in named if path.startswith(public.PREFIX)]

    def collect_rankings(self, folder: epath.Path, sample: Sample) -> tuple[list[Ranking], list[Ranking]]:
        """Raises DataError, because the rankings are part of the records."""
        raise DataError("files.rankings: expected rankings among the records, found none; this source has no labelers")

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """Returns {}."""
        return {}

    def judge(self, answers: Answers) -> Judgement:
        """Returns an empty judgment: a run reports only the measures that need no labelers."""
        return Judgement()
