"""Tests that any file of a public data set gives records with splits or an InputError."""

import gzip
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructjax.records import SPLITS
from instructjax.sources import e2e_records, texts
from tests.fuzz import tries

REFERENCE = {"prompt": "p", "mr": "name[The Eagle], area[riverside]", "response": "The Eagle is there."}
RATING = {
    "prompt": "p",
    "mr": REFERENCE["mr"],
    "item": 1,
    "rater": "r",
    "responses": ["a", "b", "a"],
    "scores": [3, 1, 2],
}
TEXT = {"text": "a fox", "title": "The Fox", "book": "Foxes", "i": 700}
OTHER = TEXT | {"title": "The Owl", "book": "Owls", "i": 2}


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(tries.as_json(line) + b"\n" for line in lines), compresslevel=1))


@tries.tries
@given(reference=st.just(REFERENCE) | tries.changed_json(REFERENCE), rating=tries.changed_json(RATING))
@example(reference=REFERENCE, rating=RATING | {"scores": [1e308, 1e308, -1e308]})
def test_e2e_files(tmp_path, reference, rating):
    for file in e2e_records.REFERENCES:
        write(tmp_path / file, reference, REFERENCE)
    write(tmp_path / "quality.jsonl.gz", RATING, rating)
    with tries.only_input_errors():
        found = e2e_records.load(tmp_path)
        assert all(record.split in SPLITS for record in (*found.demonstrations, *found.rankings, *found.prompts))


@pytest.mark.parametrize("name", texts.SETS)
@tries.tries
@given(line=tries.changed_json(TEXT))
@example(line=TEXT | {"title": 3, "book": ["a"], "i": "a"})
def test_text_files(tmp_path, name, line):
    write(tmp_path / name / texts.SETS[name].file, OTHER, line)
    with tries.only_input_errors():
        assert {record.split for record in texts.load(tmp_path, name)} == {"train", "validation"}


def test_valid_files_are_accepted(tmp_path):
    for file in (*e2e_records.REFERENCES, "quality.jsonl.gz"):
        write(tmp_path / file, json.loads(json.dumps(REFERENCE | RATING)))
    assert len(e2e_records.load(tmp_path).rankings) == 1
