"""`curate.py` writes what it keeps, and a line with the reason for everything else."""

import gzip
import json
import re

import pytest

from instructjax import records
from instructjax.data import curation
from instructjax.records import Prompt
from tests import local_data, scripts
from tests.data import planted
from tests.local_data import DATA

PII = """
def find(text):
    return "name" if "Ann" in text else ""
"""


def curate(output, source, *flags, kind="prompts"):
    """Returns the counts that the script prints and the dropped lines. The counts add up, and to the files' lines."""
    told = scripts.run("curate.py", f"--kind={kind}", f"--source={source}", f"--output={output}", *flags)
    counts = {}
    for line in told.splitlines():
        if found := re.fullmatch(r"(in|kept|dropped): (\d+)(?: \((.*)\))?", line):
            counts[found[3] or found[1]] = int(found[2])
    suffix = ".jsonl.gz" if str(output).endswith(".gz") else ".jsonl"
    dropped = _lines(output.parent / f"{output.name.removesuffix(suffix)}.dropped{suffix}")
    assert counts["in"] == counts["kept"] + sum(counts[name] for name in counts if name not in ("in", "kept"))
    assert len(_lines(output)) == counts["kept"] and len(dropped) == counts["in"] - counts["kept"]
    for reason, count in counts.items():
        assert reason in ("in", "kept") or sum(line["reason"] == reason for line in dropped) == count
    assert not list(output.parent.glob(".*"))
    return counts, dropped, told


def _lines(path):
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def test_records_are_kept_or_listed(tmp_path):
    lines = [
        {"prompt": "a fox", "user": "u", "split": "train"},
        {"prompt": "A  fox", "user": "v", "split": "train"},
        {"prompt": "mail a@b.org", "split": "train"},
        {"prompt": " "},
        {"prompt": "Ann", "split": "train"},
        {"prompt": "лиса", "split": "test"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts, dropped, told = curate(tmp_path / "out.jsonl", source)
    names = {"in", "kept", curation.PREFIX, "personal data: e-mail", "empty text"}
    assert counts == dict.fromkeys(names, 1) | {"in": 6, "kept": 3}
    assert "splits: train 2, validation 0, test 1\nscripts: latin 2, cyrillic 1\n" in told
    duplicate = min(dropped, key=lambda line: line["record"])
    number = duplicate["record"]
    assert number in (1, 2)
    assert duplicate == {
        "record": number,
        "where": f"{source}:{number}",
        "reason": curation.PREFIX,
        "instead_of": 3 - number,
    }
    assert "a@b.org" not in (tmp_path / "out.dropped.jsonl").read_text()
    (tmp_path / "own_pii.py").write_text(PII)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        counts, dropped, _ = curate(tmp_path / "new" / "out.jsonl.gz", source, "--pii=own_pii:find", "--prefix=0")
    assert [line["reason"] for line in dropped] == ["empty text", "personal data: name"]
    again, _, _ = curate(tmp_path / "again.jsonl", tmp_path / "new" / "out.jsonl.gz", "--pii=none")
    assert again["in"] == counts["kept"] == 4 and again["kept"] == 3


def test_near_duplicates_need_no_prefix_in_common(tmp_path):
    pytest.importorskip("datasketch", reason="needs the extra curation")
    fields = planted.generate(300)
    records.write(tmp_path / "in.jsonl", [records.from_dict(one, Prompt) for one in fields])
    counts, dropped, _ = curate(tmp_path / "out.jsonl", tmp_path / "in.jsonl", "--near_duplicates")
    reasons = [""] * len(fields)
    for line in dropped:
        reasons[line["record"] - 1] = line["reason"]
    recall, precision = planted.measure(fields, reasons)["near"]
    assert counts[curation.NEAR] > 3 and recall > 0.7 and precision == 1
    again, _, _ = curate(tmp_path / "again.jsonl", tmp_path / "out.jsonl", "--near_duplicates")
    assert again == {"in": counts["kept"], "kept": counts["kept"]}


@pytest.mark.skipif(not DATA.is_dir(), reason=local_data.ABSENT)
def test_local_prompts_are_curated(tmp_path):
    counts, _, _ = curate(tmp_path / "out.jsonl.gz", DATA / "prompts")
    assert counts["in"] == 3534 and counts["kept"] > 3000
