"""Curates records as in the paper's appendix A: drops duplicates, personal data and too many prompts of one user.

    python experiments/curate.py --kind=prompts --source=FILES --output=curated.jsonl.gz

FILES are as for convert.py. The output has our JSON lines, with splits. Next to it, curated.dropped.jsonl.gz has a line
for each dropped record: its number, its place, and why. See docs/curation.md.
"""

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator

import command_line
from absl import flags
from etils import epath

from instructjax import files, records
from instructjax.data import curation, near_duplicates, personal_data, prepared, presidio, shapes
from instructjax.data.curation import Rules
from instructjax.errors import InputError
from instructjax.records import Record
from instructjax.rollout import reward_function
from instructjax.sources import public
from instructjax.stages.run import Run

KINDS = {name: kind for kind, name in prepared.SET_NAMES.items()}
SUFFIXES = (".jsonl", ".jsonl.gz")
_DEFAULT = Rules()
_KIND = flags.DEFINE_enum("kind", None, list(KINDS), "What the files hold.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", None, "Files, folders, patterns or public:NAME, separated by commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, .jsonl or .jsonl.gz.", required=True)
_PUBLIC = flags.DEFINE_string("public", "", "The folder of public sets; by default ~/.cache/instructjax/public.")
_FIELDS = flags.DEFINE_string("fields", "", 'Names of fields, such as "prompt=question, response=answer".')
_PREFIX = flags.DEFINE_integer(
    "prefix", _DEFAULT.prefix, "Characters that duplicates have in common; 0 keeps duplicates.", lower_bound=0
)
_NEAR = flags.DEFINE_boolean("near_duplicates", False, "Drop near-duplicates; needs the extra curation.")
_PER_USER = flags.DEFINE_integer(
    "per_user", _DEFAULT.per_user, "Maximum number of prompts per user; 0 for no limit.", lower_bound=0
)
_MIN = flags.DEFINE_integer("min_prompt", 0, "Minimum number of characters of a prompt.", lower_bound=0)
_MAX = flags.DEFINE_integer("max_prompt", 0, "Maximum number of characters of a prompt; 0 for none.", lower_bound=0)
_SCRIPT = flags.DEFINE_enum("script", _DEFAULT.script, list(curation.SCRIPTS), "The script of --script_share.")
_SHARE = flags.DEFINE_float(
    "script_share", 0.0, "Minimum share of a script among the letters of a prompt.", lower_bound=0, upper_bound=1
)
_PII = flags.DEFINE_string(
    "pii",
    "rules",
    "Find personal data by rules, by presidio, by MODULE:FUNCTION of a text that returns its kind or '', or none.",
)
_VALIDATION = flags.DEFINE_float(
    "validation", _DEFAULT.validation, "Share of users in the validation split.", lower_bound=0, upper_bound=1
)
_TEST = flags.DEFINE_float("test", _DEFAULT.test, "Share of users in the test split.", lower_bound=0, upper_bound=1)


def main(_: Run) -> None:
    """Writes the curated and the dropped records, and prints the counts. The recipe is not used."""
    rules = _rules()
    kind = KINDS[_KIND.value]
    names = shapes.parse_names(_FIELDS.value, "--fields")
    output = files.parse(_OUTPUT.value, "--output", schemes=())
    suffix = next((suffix for suffix in reversed(SUFFIXES) if output.name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"--output: expected a file that ends in .jsonl or .jsonl.gz, found {_OUTPUT.value:.200}")
    dropped = output.parent / f"{output.name.removesuffix(suffix)}.dropped{suffix}"

    def given() -> Iterator[Record]:
        return records.valid(public.read_all(_SOURCE.value, kind, names, "--source", _PUBLIC.value))

    decisions = curation.decide(given(), rules)
    splits, scripts = Counter[str](), Counter[str]()
    output.parent.mkdir(parents=True, exist_ok=True)
    with _new_file(output) as write, _new_file(dropped) as write_dropped:
        for number, found in enumerate(curation.apply(given(), decisions, rules), start=1):
            if found.reason:
                place = {"record": number, "where": found.record.where, "reason": found.reason}
                write_dropped(json.dumps(place | ({"instead_of": found.instead_of} if found.instead_of else {})))
                continue
            splits[str(found.record.split)] += 1
            scripts[curation.main_script(curation.texts(found.record)[0]) or "none"] += 1
            write(records.to_json(found.record))
    counts = decisions.counts()
    print(f"in: {sum(counts.values())}")
    print(f"kept: {counts.pop('')}")
    for reason, count in sorted(counts.items()):
        if count:
            print(f"dropped: {count} ({reason})")
    print(f"splits: {', '.join(f'{split} {splits[split]}' for split in records.SPLITS)}")
    print(f"scripts: {', '.join(f'{script} {count}' for script, count in scripts.most_common())}")
    print(f"{output}: {splits.total()} {_KIND.value}")
    print(f"{dropped}: {sum(counts.values())} places and reasons")


def _rules() -> Rules:
    held_out = _VALIDATION.value + _TEST.value
    if held_out > 1:
        raise InputError(f"--validation, --test: expected shares with a sum of at most 1, found {held_out}")
    return Rules(
        prefix=_PREFIX.value,
        sign=near_duplicates.signer("--near_duplicates") if _NEAR.value else None,
        per_user=_PER_USER.value,
        min_prompt=_MIN.value,
        max_prompt=_MAX.value,
        script=_SCRIPT.value,
        script_share=_SHARE.value,
        find_personal=_find_personal(_PII.value),
        validation=_VALIDATION.value,
        test=_TEST.value,
    )


def _find_personal(name: str) -> Callable[[str], str] | None:
    if name in ("rules", "none"):
        return personal_data.find if name == "rules" else None
    if name == "presidio":
        return presidio.finder("--pii")
    loaded = reward_function.load(name, "--pii")

    def find(text: str) -> str:
        try:
            kind = loaded.function(text)
        except Exception as error:  # a program of the user
            found = f"{type(error).__name__}: {error}"
            raise InputError(f"--pii: expected {loaded.name} to return text, found {found:.200}") from error
        if not isinstance(kind, str):
            raise InputError(f"--pii: expected {loaded.name} to return text, found {records.show(kind)}")
        return kind

    return find


@contextlib.contextmanager
def _new_file(path: epath.Path) -> Iterator[Callable[[str], object]]:
    """Gives a function that writes a line. The file takes the place of an older one when the block ends well."""
    unfinished = path.parent / f".{path.name}.unfinished"
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(unfinished.open("wb"))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
            yield lambda line: file.write(f"{line}\n".encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    command_line.read(main)
