"""Mixtures: the order in which records of several sources are drawn, in given shares.

    sources       hh: 160,000 records, oasst1: 40,000
    epochs        hh=0.5                          shares 0.67 and 0.33: hh is seen half as often
    temperature   2                               shares in proportion to the roots of these: 0.59 and 0.41
    weights       hh=1, oasst1=1                  shares 0.5 and 0.5, whatever the sizes

Sources take turns in a fixed pattern with these shares, and the records of each are shuffled again in each of its
epochs, with a seed of its own. So the number of records that were drawn is the position in every source, and a stream
resumes exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import grain
import ml_collections
import numpy as np

from instructjax.errors import ConfigError, DataError
from instructjax.records import Record, Text

_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The records of each source, and how often they are drawn.

    Attributes:
      members: the indices of the records of each source, int64 [N].
      shares: the share of each source among the records that are drawn; their sum is 1.
    """

    members: Mapping[str, np.ndarray]
    shares: Mapping[str, float]


def source_of(record: Record) -> str:
    """Returns the name of a record's source: its own field, or else the name of its file without suffixes."""
    if record.source:
        return record.source
    name = record.where.rpartition(":")[0].rpartition("/")[2]
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name or "unknown"


def size_of(record: Record) -> int:
    """Returns the characters of a document, and 1 for any other record."""
    return len(record.text) if isinstance(record, Text) else 1


def parse(text: str, where: str) -> dict[str, float]:
    """Reads "hh=2, oasst1=0.5" as numbers by source.

    Raises:
      ConfigError: a part is not SOURCE=NUMBER, or its number is not above 0.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (side.strip() for side in part.rpartition("="))
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < float("inf"):
            raise ConfigError(f"{where}: expected SOURCE=NUMBER above 0, such as hh=2, found {part!r:.100}")
    return found


def mix(records: Sequence[Record], section: ml_collections.ConfigDict) -> Mixture | None:
    """Returns the mixture of a recipe; None if it asks for none, or the records have one source.

    The shares are those of the examples, and of the characters of documents.

    Args:
      records: all records of a kind and split.
      section: `mixture` of a recipe.

    Raises:
      ConfigError: see `shares`.
    """
    if not (section.weights or section.epochs or section.temperature != 1):
        return None
    members: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for index, record in enumerate(records):
        source = source_of(record)
        members.setdefault(source, []).append(index)
        sizes[source] = sizes.get(source, 0) + size_of(record)
    if len(members) < 2:
        return None
    counts = {name: len(indices) for name, indices in members.items()}
    wanted = shares(sizes, section)
    drawn = {name: share * counts[name] / sizes[name] for name, share in wanted.items()}  # documents, not characters
    total = sum(drawn.values())
    return Mixture(
        {name: np.asarray(indices) for name, indices in members.items()},
        {name: share / total for name, share in drawn.items()},
    )


def shares(sizes: Mapping[str, float], section: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns the share of each source: of its weight, or of (size x epochs)^(1 / temperature).

    Args:
      sizes: the examples or characters of each source.
      section: `mixture` of a recipe.

    Raises:
      ConfigError: some of these sources have a weight, and others do not.
    """
    weights = parse(section.weights, "mixture.weights")
    epochs = parse(section.epochs, "mixture.epochs")
    without = [name for name in sizes if name not in weights]
    if len(without) not in (0, len(sizes)):
        raise ConfigError(f"mixture.weights: expected a weight for {without[0]}, too, found none")
    power = 1 / section.temperature
    found = {name: weights.get(name) or (size * epochs.get(name, 1.0)) ** power for name, size in sizes.items()}
    total = sum(found.values())
    return {name: weight / total for name, weight in found.items()}


def check_form(section: ml_collections.ConfigDict) -> None:
    """Checks `mixture` of a recipe whatever the records are.

    Raises:
      ConfigError: `weights` or `epochs` are not of the form that `parse` reads, or both name a source.
    """
    weights, epochs = (parse(section[key], f"mixture.{key}") for key in ("weights", "epochs"))
    for name in weights:
        if name in epochs:
            raise ConfigError(f"mixture.epochs: expected sources without a weight, found {name!r:.100}")


def check(sources: Collection[str], section: ml_collections.ConfigDict) -> None:
    """Checks that the names in a recipe's mixture are sources of its records.

    Args:
      sources: those of all kinds of records.
      section: `mixture` of the recipe.

    Raises:
      ConfigError: names the key, and what it may name.
    """
    for key in ("weights", "epochs"):
        for name in parse(section[key], f"mixture.{key}"):
            if name not in sources:
                raise ConfigError(f"mixture.{key}: expected some of {', '.join(sources)}, found {name!r:.100}")


def order(count: int, seed: int, mixture: Mixture | None = None) -> grain.MapDataset:
    """Returns the indices of records in the order in which they are drawn, without end.

    Args:
      count: the number of records.
      seed: decides the order in each epoch, from 0 to 2**32 - 1.
      mixture: how often each source is drawn; None for every record once per epoch.

    Raises:
      DataError: there are no records.
    """
    if not count:
        raise DataError("expected at least one record, found none")
    if mixture is None:
        return grain.MapDataset.range(count).seed(seed).shuffle().repeat()
    streams = [
        grain.MapDataset.source(members.tolist()).seed(_seed_of(source, seed)).shuffle().repeat()
        for source, members in mixture.members.items()
    ]
    return grain.MapDataset.mix(streams, weights=list(mixture.shares.values()))


def _seed_of(source: str, seed: int) -> int:
    # With one seed for all, sources of the same size would be shuffled alike. By name, so that a source keeps its order
    # when others are added.
    return int(np.random.SeedSequence([seed, *source.encode("utf-8", "surrogatepass")]).generate_state(1)[0])
