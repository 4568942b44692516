"""Converts files of other formats to our JSON lines, and says what came in and what was left out.

    python experiments/convert.py --kind=rankings --source=FILES --output=rankings.jsonl.gz

FILES are files, folders or patterns, separated by commas: .jsonl, .json, .csv, .tsv, .parquet and .arrow, with .gz
or .zst; or public sets such as public:webgpt. Most fields are known; --fields names others. See docs/formats.md.
"""

import command_line
from absl import flags

from instructjax import files, records
from instructjax.data import pairs, prepared, selection, shapes
from instructjax.data.selection import Counts
from instructjax.errors import InputError, RecordError
from instructjax.records import Ranking
from instructjax.sources import public
from instructjax.stages.run import Run

KINDS = {name: kind for kind, name in prepared.SET_NAMES.items()}
_KIND = flags.DEFINE_enum("kind", None, list(KINDS), "What the files hold.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", None, "Files, folders, patterns or public:NAME, separated by commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, .jsonl or .jsonl.gz.", required=True)
_PUBLIC = flags.DEFINE_string("public", "", "The folder of public sets; by default ~/.cache/instructjax/public.")
_FIELDS = flags.DEFINE_string("fields", "", 'Names of fields, such as "prompt=question, response=answer".')
_MERGE = flags.DEFINE_boolean("merge_pairs", True, "Merge pairs of answers to one prompt into one ranking.")
_SKIP = flags.DEFINE_boolean("skip_invalid", False, "Leave out and count rows that are not records, and print some.")


def main(_: Run) -> None:
    """Converts the files, and prints the counts. The recipe is not used."""
    kind = KINDS[_KIND.value]
    names = shapes.parse_names(_FIELDS.value, "--fields")
    output = files.parse(_OUTPUT.value, "--output")
    if not str(output).endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"--output: expected a file that ends in .jsonl or .jsonl.gz, found {_OUTPUT.value:.200}")
    found = list(public.read_all(_SOURCE.value, kind, names, "--source", _PUBLIC.value))
    faults = [str(record) for record in found if isinstance(record, RecordError)]
    if faults and not _SKIP.value:
        raise RecordError(records.list_faults(faults, len(faults)))
    counts, used = Counts(), []
    for choice in (selection.choose_by_content(record) for record in found if not isinstance(record, RecordError)):
        counts.add(choice)
        if choice.record is not None:
            used.append(choice.record)
    if not used:
        raise RecordError(f"--source: expected a record that can be used, found none of {len(found)}")
    written = pairs.merge_pairs(used) if kind is Ranking and _MERGE.value else used
    records.write(output, written)
    print(f"in: {len(found)}")
    print(f"used: {counts.used}")
    for reason, count in sorted(({**counts.left_out, "not a record": len(faults)}).items()):
        if count:
            print(f"left out: {count} ({reason})")
    for fault in faults[:5]:
        print(f"  {fault}")
    if counts.changed:
        print(f"changed: {counts.parts()}")
    if len(written) != len(used):
        print(f"merged: {len(used)} rankings became {len(written)}")
    print(f"{output}: {len(written)} {_KIND.value}")


if __name__ == "__main__":
    command_line.read(main)
