"""Tokenizes the prepared records once, and remembers in a file which of them fit into the limits.

    checked.json   {SET: {"what": what was checked, "splits": {SPLIT: ENTRY}}}; an entry has
                   "counts", "left_out", "answers", "lengths", "users", "use_cases", "sources",
                   and for tables as in the paper "annotations", "table9", "table10", "table11"

`left_out` lists indices of records, and `answers` the answers that remain of rankings, by index. `lengths` are the
quantiles QUANTILES of the tokens of prompts (separator included) and of responses (EOS included). `users` are the
number of users and of the used records that have one, `use_cases` the used records by use case. `sources` are the used
records of each source, and their sizes as in `mixtures.py`. `annotations` are the numbers of used records with
annotations, and with each of them. The tables have STATISTICS of tokens of prompts and responses: of all (Table 9), of
prompts by use case (Table 10), and by whether a labeler or a customer wrote the prompt (Table 11). A customer is a
record's `user`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from instructjax import files, warning_log
from instructjax.data import mixtures, prepared, selection
from instructjax.data.layouts import Layout
from instructjax.data.selection import Chosen, Counts
from instructjax.errors import DataError
from instructjax.records import MAX_FAULTS, R, Ranking, Record, Text, list_faults

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
STATISTICS = ("number", "mean", "standard deviation", "minimum", "25 %", "50 %", "75 %", "maximum")
RECORDS = "records"  # that have annotations
MANY = 0.1  # a larger share of records that are left out is a warning
_VERSION = 2  # of what an entry has
_LIMITS = {"prompt": "data.max_prompt", "response": "data.max_response"}


def check(
    folder: epath.Path,
    path: epath.Path,
    layout: Layout,
    *,
    max_answers: int,
    strict: bool,
    over: prepared.Over = iter,
) -> None:
    """Checks the prepared sets of a folder that were not checked yet, and prints what is left out of them.

    Args:
      folder: the prepared sets.
      path: checked.json.
      layout: the tokenizer and the limits.
      max_answers: the maximum number of answers of a ranking.
      strict: makes each record that does not fit an error.
      over: wraps each pass over the records.

    Raises:
      DataError: with `strict`, records do not fit. The error lists the first ones.
    """
    for kind, name in prepared.SET_NAMES.items():
        if not (folder / name).exists():
            continue
        what: dict[str, Any] = {
            "records": prepared.fingerprint(folder, name),
            "version": _VERSION,
            "tokenizer": layout.tokenizer.fingerprint,
        }
        if kind is not Text:
            limits = [layout.max_prompt, layout.max_response, layout.cut_prompts]
            what |= {"template": layout.kind, "separator": layout.separator, "limits": limits}
        if kind is Ranking:
            what["max_answers"] = max_answers
        known = read(path)
        entry = known.get(name, {})
        if entry.get("what") == what and not (strict and _has_reasons(entry)):
            continue
        splits = {
            split: _check_split(over(prepared.load(folder, name, kind, split)), layout, max_answers, strict)
            for split in prepared.split_sizes(folder, name)
        }
        files.write_json(path, known | {name: {"what": what, "splits": splits}})
        for split, counts in count(folder, name, read(path)[name]).items():
            _print(f"{name}, {split}", counts, splits.get(split, {}).get("lengths", {}), layout)


def read(path: epath.Path) -> dict[str, Any]:
    """Reads checked.json; {} if it does not exist."""
    return files.read_json(path) if path.exists() else {}


def use(records: Sequence[R], entry: Mapping[str, Any], split: str) -> Sequence[R]:
    """Returns a view of what is used of the records of a split.

    Args:
      records: all prepared records of the split, or the tokens of its texts.
      entry: what checked.json has about their set.
      split: its name.
    """
    found = entry["splits"][split]
    answers = {int(index): kept for index, kept in found["answers"].items()}
    return Chosen(records, found["left_out"], answers) if found["left_out"] or answers else records


def count(folder: epath.Path, name: str, entry: Mapping[str, Any] | None) -> dict[str, Counts]:
    """Returns by split how many records of a prepared set came in, are used, and are left out for which reason.

    Args:
      folder: the prepared sets.
      name: of the set.
      entry: what checked.json has about it; None if it was not checked yet.
    """
    counts = prepared.counts(folder, name)
    later = {split: Counts(**found["counts"]) for split, found in (entry or {"splits": {}})["splits"].items()}
    return {split: found.then(later[split]) if split in later else found for split, found in counts.items()}


def describe_lengths(lengths: Mapping[str, Sequence[int]], part: str) -> str:
    """Returns "responses have 9 to 71 tokens, half of them up to 20, 90 % up to 44, 99 % up to 70"."""
    least, half, ninety, ninety_nine, most = lengths[part]
    return (
        f"{part}s have {least} to {most} tokens, half of them up to {half}, 90 % up to {ninety}, "
        f"99 % up to {ninety_nine}"
    )


def _check_split(records: Iterable[Record], layout: Layout, max_answers: int, strict: bool) -> dict[str, Any]:
    counts = Counts()
    left_out: list[int] = []
    answers: dict[str, list[int]] = {}
    lengths: dict[str, list[int]] = {"prompt": [], "response": []}
    faults: list[str] = []
    users, use_cases, sources, sizes, annotations = (collections.Counter[str]() for _ in range(5))
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}  # lengths of parts by use case and by writer
    for index, record in enumerate(records):
        choice, prompt, responses = selection.choose_by_length(record, layout, max_answers)
        counts.add(choice)
        if prompt:
            lengths["prompt"].append(prompt)
            lengths["response"] += responses
            for group in _groups(record):
                found = groups.setdefault(group, {"prompt": [], "response": []})
                found["prompt"].append(prompt)
                found["response"] += responses
        if choice.reason and len(faults) < MAX_FAULTS:
            faults.append(choice.fault)
        if choice.record is None:
            left_out.append(index)
            continue
        if choice.answers:
            answers[str(index)] = list(choice.answers)
        users.update([record.user] if record.user else [])
        use_cases.update([record.use_case] if record.use_case else [])
        sources[mixtures.source_of(record)] += 1
        sizes[mixtures.source_of(record)] += mixtures.size_of(record)
        annotations.update(_annotations(record))
    if strict and faults:
        raise DataError(list_faults(faults, sum(counts.left_out.values()) + sum(counts.changed.values())))
    quantiles = {
        part: np.quantile(found, QUANTILES, method="higher").astype(int).tolist()
        for part, found in lengths.items()
        if found
    }
    return {
        "counts": dataclasses.asdict(counts),
        "left_out": left_out,
        "answers": answers,
        "lengths": quantiles,
        "users": {"users": len(users), "records": users.total()},
        "use_cases": dict(use_cases.most_common()),
        "sources": {name: {"records": count, "size": sizes[name]} for name, count in sources.most_common()},
        "annotations": dict(annotations),
        "table9": _statistics(lengths),
        "table10": {name: _statistics(found) for (table, name), found in groups.items() if table == "table10"},
        "table11": {name: _statistics(found) for (table, name), found in groups.items() if table == "table11"},
    }


def _groups(record: Record) -> list[tuple[str, str]]:
    """Returns the tables of lengths that a record is part of, and its row in each."""
    found = [("table10", record.use_case)] if record.use_case else []
    is_customer = record.user and record.user != record.labeler
    return [*found, ("table11", "customer" if is_customer else "labeler")]


def _annotations(record: Record) -> list[str]:
    """Returns the annotations that are true, and RECORDS; [] if the record has none."""
    found = record.extra.get("annotations")
    return [RECORDS, *(name for name, value in found.items() if value is True)] if isinstance(found, dict) else []


def _statistics(lengths: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    """Returns STATISTICS of the lengths of each part that has some."""
    return {
        part: [len(found), *map(float, (np.mean(found), np.std(found), *np.quantile(found, (0, 0.25, 0.5, 0.75, 1))))]
        for part, found in lengths.items()
        if found
    }


def _has_reasons(entry: Mapping[str, Any]) -> bool:
    return any(found["left_out"] or found["answers"] for found in entry["splits"].values())


def _print(place: str, counts: Counts, lengths: Mapping[str, Sequence[int]], layout: Layout) -> None:
    """Prints what is left out of a split, once, or warns if it is much."""
    if counts.changed:
        print(f"{place}: {sum(counts.changed.values())} of {counts.used} records are used in part ({counts.parts()})")
    if not counts.left_out:
        return
    left_out = counts.given - counts.used
    line = f"{place}: {left_out} of {counts.given} records are left out ({counts.describe()})"
    if left_out > MANY * counts.given:
        warning_log.warn("; ".join([line, *advise(counts, lengths, layout)]))
    else:
        print(line)


def advise(counts: Counts, lengths: Mapping[str, Sequence[int]], limits: Any) -> list[str]:
    """Returns the lengths of what is too long, each with the key to raise.

    Args:
      counts: of a split.
      lengths: of its prompts and responses, as in checked.json.
      limits: a layout or a section `data`, with `max_prompt` and `max_response`.
    """
    found = []
    for part, reason in (("prompt", selection.LONG_PROMPT), ("response", selection.LONG_RESPONSE)):
        if reason in counts.left_out and part in lengths:
            key = _LIMITS[part]
            limit = getattr(limits, key.removeprefix("data."))
            found.append(f"{describe_lengths(lengths, part)}: raise {key} ({limit})")
    return found
