import gzip
import json

import pytest

from instructjax.errors import DataError, RecordError
from instructjax.sources import texts


def write(root, name, rows):
    (root / name).mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / name / texts.SETS[name].file).write_bytes(gzip.compress(lines.encode()))


@pytest.mark.parametrize("name", ["openstax_textbooks", "standard_ebooks"])
def test_no_book_is_in_two_splits(tmp_path, name):
    write(tmp_path, name, [{"book": f"book {i % 40}", "title": "t", "text": f"chapter {i}"} for i in range(200)])
    loaded = texts.load(tmp_path, name, validation=0.1)
    assert [record.text for record in loaded] == [f"chapter {i}" for i in range(200)]
    held_out = {record.extra["book"] for record in loaded if record.split == "validation"}
    trained_on = {record.extra["book"] for record in loaded if record.split == "train"}
    assert len(held_out) == 4 and len(trained_on) == 36 and not held_out & trained_on
    assert {record.source for record in loaded} == {name}


def test_at_least_one_work_is_held_out(tmp_path):
    write(tmp_path, "storybooks", [{"title": str(i), "text": "Once upon a time."} for i in range(3)])
    loaded = texts.load(tmp_path, "storybooks", validation=0.01)
    assert sorted(record.split for record in loaded) == ["train", "train", "validation"]


def test_messages_are_held_out_in_long_runs(tmp_path):
    write(tmp_path, "oasst1_en", [{"i": i, "text": f"message {i}"} for i in range(2000)])
    splits = [record.split for record in texts.load(tmp_path, "oasst1_en")]
    assert splits.count("validation") == 500
    assert sum(one != other for one, other in zip(splits, splits[1:], strict=False)) <= 2


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="expected one of storybooks, .*, found 'wikipedia'"):
        texts.load(tmp_path, "wikipedia")
    with pytest.raises(DataError, match=r"storybooks.jsonl.gz: expected the text set storybooks, found no such file"):
        texts.load(tmp_path, "storybooks")
    write(tmp_path, "storybooks", [{"title": "A", "text": "x"}])
    with pytest.raises(DataError, match="expected at least 2 works, to hold one out, found only 'A'"):
        texts.load(tmp_path, "storybooks")
    write(tmp_path, "standard_ebooks", [{"title": "A", "text": "x"}])
    with pytest.raises(RecordError, match=r"standard_ebooks.jsonl.gz:1: expected the work's name \('book'\)"):
        texts.load(tmp_path, "standard_ebooks")
