"""Reports what came in and what is used of it, next to the paper's Tables 1 and 6 to 11: WORKDIR/data/report.md.

If there are enough records, two figures are next to it: lengths.png and use_cases.png.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.data import checked
from instructjax.reporting import paper_tables

ENOUGH = 100  # records of a split; a picture of fewer says less than the table

Summary = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by set and split; see `summary.summarize`
Row = tuple[str, str, Mapping[str, Any]]


def write(
    folder: epath.Path,
    summary: Summary,
    recipe: str,
    shares: Mapping[str, Mapping[str, float]],
    overlap: Mapping[str, Any],
) -> None:
    """Writes FOLDER/report.md and its figures, unless they are there already.

    Args:
      folder: WORKDIR/data.
      summary: see `summary.summarize`.
      recipe: the name of the recipe.
      shares: for each set, the share of each source in training; see `mixtures.shares`.
      overlap: the prompts that sets have in common; see `overlap.count`.
    """
    enough = {
        "lengths": any(found["table9"].get("prompt", [0])[0] >= ENOUGH for _, _, found in _rows(summary)),
        "use_cases": any(sum(found["use_cases"].values()) >= ENOUGH for _, _, found in _trained(summary)),
    }
    pictures = [name for name, is_enough in enough.items() if is_enough]
    text = markdown(summary, recipe, shares, overlap, [f"{name}.png" for name in pictures])
    path = folder / "report.md"
    if path.exists() and path.read_text() == text:
        return
    if pictures:
        from instructjax.reporting import data_figures, figures  # Matplotlib takes a second to import

        for name in pictures:
            figures.save(getattr(data_figures, name)(summary, ENOUGH), folder / f"{name}.png")
    files.write_text(path, text)


def markdown(
    summary: Summary,
    recipe: str,
    shares: Mapping[str, Mapping[str, float]],
    overlap: Mapping[str, Any],
    pictures: Sequence[str] = (),
) -> str:
    """Returns the report as Markdown; see `write`.

    Args:
      summary: see `write`.
      recipe: see `write`.
      shares: see `write`.
      overlap: see `write`.
      pictures: the names of figures next to it.
    """
    rows = _rows(summary)
    tables = [
        ("Records", "", _COUNTED, _records(rows)),
        ("Sources", _SHARES, "set,split,source,records,share in training,epochs", _sources(rows, shares)),
        ("Prompts in two sets", _OVERLAP, "set,split,prompts,also in,split,of them,%", _overlap(overlap)),
        ("Records per user", "", "set,split,users,records per user,the paper has (Table 8)", _users(rows)),
        ("Use cases in training", "", "set,use case,%,the paper has % (Table 1)", _use_cases(_trained(summary))),
        ("Annotations", _ANNOTATED, "set,split,annotation,%,the paper has % (Table 7)", _annotations(rows)),
        ("Lengths", _TOKENS, f"set,split,part,{_COLUMNS}", _lengths(rows)),
        ("Lengths of prompts by use case", "", f"set,split,use case,{_COLUMNS}", _by_use_case(rows)),
        ("Lengths by who wrote the prompt", _WRITERS, f"set,split,writer,part,{_COLUMNS}", _by_writer(rows)),
    ]
    parts = [
        "# What was learned from",
        f"Recipe `{recipe}`. Every record that came in is used or left out for one of the reasons below.",
    ]
    for title, about, header, found in tables:
        if found:
            parts += [f"## {title}", *([about] if about else []), _table(header.split(","), found)]
    parts += [f"![{picture}]({picture})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def records_table(summary: Summary) -> str:
    """Returns the report's table of how many records came in and are used; see `write`."""
    return _table(_COUNTED.split(","), _records(_rows(summary)))


_COUNTED = "set,split,in,used,the paper has (Table 6),left out,used in part"
_COLUMNS = ",".join(checked.STATISTICS)
_SHARES = (
    "Shares are those of `mixture`: of examples, or of the characters of text. Epochs are how often a source is seen "
    "in one epoch of the whole."
)
_OVERLAP = (
    "Different prompts of the records that are used. A prompt of training and of another split is a leak; there is "
    "none unless `data.shared_prompts` is `keep`. Sets and splits without a line have no prompt in common."
)
_ANNOTATED = "Of the records with `annotations`."
_TOKENS = (
    "Tokens of all records that carry a signal: of prompts with the separator, of responses with EOS. Lines without a "
    "set are the paper's (Tables 9 to 11)."
)
_WRITERS = "A prompt with a `user` other than its `labeler` is a customer's."


def _rows(summary: Summary) -> list[Row]:
    return [(name, split, found) for name, splits in summary.items() for split, found in splits.items()]


def _trained(summary: Summary) -> list[Row]:
    return [row for row in _rows(summary) if row[1] == "train"]


def _records(rows: Sequence[Row]) -> list[list[Any]]:
    return [
        [name, split, found["given"], found["used"], _paper(paper_tables.SIZES, name, split), *_reasons(found)]
        for name, split, found in rows
    ]


def _sources(rows: Sequence[Row], shares: Mapping[str, Mapping[str, float]]) -> list[list[Any]]:
    """Returns the records of each source, if a set has several, and what a mixture makes of them in training."""
    found = []
    for name, split, entry in rows:
        total = sum(source["size"] for source in entry["sources"].values())
        for source, counted in entry["sources"].items() if len(entry["sources"]) > 1 else ():
            share = shares.get(name, {}).get(source, counted["size"] / total)
            drawn = [f"{share:.3f}", f"{share * total / counted['size']:.2f}"] if split == "train" else ["", ""]
            found.append([name, split, source, counted["records"], *drawn])
    return found


def _overlap(overlap: Mapping[str, Any]) -> list[list[Any]]:
    found = []
    for name, split, other, other_split, shared in overlap["shared"]:
        total = overlap["prompts"][name][split]
        found.append([name, split, total, other, other_split, shared, f"{100 * shared / total:.1f}"])
    return found


def _users(rows: Sequence[Row]) -> list[list[Any]]:
    return [
        [name, split, count, f"{found['users']['records'] / count:.2f}", _paper(paper_tables.PER_USER, name, split)]
        for name, split, found in rows
        if (count := found["users"].get("users"))
    ]


def _use_cases(rows: Sequence[Row]) -> list[list[Any]]:
    return [
        [name, case, f"{share:.1f}", paper_tables.USE_CASES.get(case.lower(), "")]
        for name, _, found in rows
        for case, share in shares_of_use_cases(found).items()
    ]


def shares_of_use_cases(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns the share of each use case in percent."""
    total = sum(found["use_cases"].values())
    return {case: 100 * count / total for case, count in found["use_cases"].items()}


def _annotations(rows: Sequence[Row]) -> list[list[Any]]:
    cells = []
    for name, split, found in rows:
        for label, count in found["annotations"].items():
            if label != checked.RECORDS:
                paper = paper_tables.annotation(label, name, split)
                share = 100 * count / found["annotations"][checked.RECORDS]
                cells.append([name, split, label, f"{share:.1f}", "" if paper is None else paper])
    return cells


def _lengths(rows: Sequence[Row]) -> list[list[Any]]:
    cells = []
    for name, split, found in rows:
        for part, ours in found["table9"].items():
            cells.append([name, split, part, *_rounded(ours)])
            if part == "prompt" and (paper := paper_tables.LENGTHS.get((name, split))):
                cells.append(["", "", "the paper's", *paper])
    return cells


def _by_use_case(rows: Sequence[Row]) -> list[list[Any]]:
    cells = []
    for name, split, found in rows:
        for case, ours in found["table10"].items():
            cells.append([name, split, case, *_rounded(ours["prompt"])])
            if paper := paper_tables.LENGTHS_BY_USE_CASE.get(case.lower()):
                cells.append(["", "", "the paper's", *paper])
    return cells


def _by_writer(rows: Sequence[Row]) -> list[list[Any]]:
    """Returns the rows of sets with prompts of customers; the paper has those of demonstrations."""
    cells = []
    for name, split, found in rows:
        for writer, parts in found["table11"].items() if "customer" in found["table11"] else ():
            for part, ours in parts.items():
                cells.append([name, split, writer, part, *_rounded(ours)])
                if name == "demonstrations":
                    cells.append(["", "", "", "the paper's", *paper_tables.LENGTHS_BY_WRITER[writer, part]])
    return cells


def _rounded(statistics: Sequence[float]) -> list[str]:
    return [f"{value:.0f}" for value in statistics]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _paper(table: Mapping[str, Mapping[str, float]], name: str, split: str) -> float | str:
    return table.get(name, {}).get(split, "")


def _reasons(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        ", ".join(f"{reason}: {count}" for reason, count in found[key].items()) or "0"
        for key in ("left_out", "changed")
    ]
