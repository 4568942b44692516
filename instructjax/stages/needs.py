"""The records that each stage needs, checked before the first stage. No other records are required."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from instructjax.data import checked, prepared
from instructjax.data.selection import Counts
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking, Record, Text

if TYPE_CHECKING:
    from instructjax.stages.run import Run

_TRAINED = ("train", "validation")
NEEDS: Mapping[str, Mapping[type[Record], tuple[str, ...]]] = {
    "pretrain": {Text: _TRAINED},
    "sft": {Demonstration: _TRAINED},
    "comparisons": {},
    "reward": {Ranking: _TRAINED},
    "select": {Prompt: ("validation",)},
    "ppo_init": {Text: ("train",), Demonstration: _TRAINED},
    "ppo": {Prompt: _TRAINED},
    "ppo_ptx": {Text: ("train",), Prompt: _TRAINED},
    "dpo": {Ranking: ("train",)},
    "evaluate": {Text: ("validation",), Demonstration: ("train",), Prompt: ("validation", "test")},
}


def check(run: Run, stages: Iterable[str], *, tokenized: bool = True) -> None:
    """Checks that prepared sets have records that can be used.

    Args:
      run: its records are prepared.
      stages: names of stages; guests are asked for nothing, and fail when they read.
      tokenized: whether checked.json describes the prepared sets. If not, it may be that of other records or limits.

    Raises:
      ConfigError: the recipe names no file of some kind of records.
      DataError: a split has no records, or none that can be used; the message has the cause and what to change.
    """
    for kind, splits in run.source.splits.items():
        for split in splits:
            _check_split(run, kind, split, tokenized)
    for stage in stages:
        if stage in ("pretrain", "reward") and run.config[stage].import_from:
            continue
        for kind, splits in NEEDS.get(stage, {}).items():
            if kind is Text and stage == "ppo_init" and not run.config.ppo_init.text_share:
                continue
            name = prepared.SET_NAMES[kind]
            if "files" in run.config and not (run.prepared_folder / name).exists():
                raise ConfigError(f"files.{name}: expected a file of {kind.__name__} records for {stage}, found none")
            if kind is not Ranking and not (run.prepared_folder / name).exists():
                raise DataError(f"{stage}: expected {kind.__name__} records, found none; this source has none")
            for split in splits:
                _check_split(run, kind, split, tokenized)


def _check_split(run: Run, kind: type[Record], split: str, tokenized: bool) -> None:
    folder, name = run.prepared_folder, prepared.SET_NAMES[kind]
    if not (folder / name).exists():  # rankings may be collected later
        return
    entry = checked.read(run.data_folder / "checked.json").get(name) if tokenized else None
    counts = checked.count(folder, name, entry)
    place = ", ".join(prepared.source_files(folder, name))
    if split not in counts:
        sizes = ", ".join(f"{other} ({found.used})" for other, found in counts.items())
        raise DataError(
            f"{place}: expected {kind.__name__} records in the split {split}, "
            f"found only {sizes}{_of_users(run, kind)}; "
            f'add records with "split": "{split}", or change data.validation or data.test'
        )
    if not counts[split].used:
        causes = "; ".join(_causes(run, counts[split], ((entry or {}).get("splits", {})).get(split, {})))
        raise DataError(
            f"{place}: expected {kind.__name__} records in the split {split} that can be used, "
            f"found none of {counts[split].given}: {causes}"
        )


def _of_users(run: Run, kind: type[Record]) -> str:
    """Returns how many users a set has, because splits are by user; "" if it names none."""
    folder, name = run.prepared_folder, prepared.SET_NAMES[kind]
    splits = [prepared.load(folder, name, kind, split) for split in prepared.split_sizes(folder, name)]
    users = {record.user for records in splits for record in records if record.user}
    return f' of {len(users)} users (splits are by "user", who sent the prompt)' if users else ""


def _causes(run: Run, counts: Counts, found: Mapping[str, Mapping[str, list[int]]]) -> list[str]:
    return [counts.describe(), *checked.advise(counts, found.get("lengths", {}), run.config.data)]
