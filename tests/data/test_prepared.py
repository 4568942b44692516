"""Tests that prepared sets give back their records, in order and once each, and that incomplete sets are rejected."""

import subprocess
import sys

import pytest

from instructjax import records
from instructjax.data import preparation, prepared
from instructjax.errors import DataError, RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text


def demonstrations(count, **fields):
    return [
        Demonstration(prompt=f"p{i}", response=f"é {i}", user=f"u{i % 40}", extra={"number": i}, **fields)
        for i in range(count)
    ]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    for path, part in zip(paths, (demonstrations(150), demonstrations(50, labeler="l")), strict=True):
        records.write(path, part)
    return paths


def snapshot(directory):
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_splits_contain_every_record_once_in_order_with_its_place(files, tmp_path):
    preparation.prepare(Demonstration, files, tmp_path / "data", name="demos", validation=0.2, test=0.2)
    everything = [record for path in files for record in records.read(path, Demonstration)]
    for split in records.SPLITS:
        expected = [record for record in everything if records.split_of(record, 0.2, 0.2) == split]
        found = prepared.load(tmp_path / "data", "demos", Demonstration, split)
        assert len(found) == len(expected) > 0
        assert list(found) == expected
        assert [record.where for record in found] == [record.where for record in expected]
        assert found[len(found) - 1] == found[-1] == expected[-1]
        assert found[2:9:3] == found.__getitems__([2, 5, 8]) == expected[2:9:3]
        with pytest.raises(IndexError):
            found[len(found)]


@pytest.mark.parametrize(
    "record",
    [
        Text(text="a\n▁ \0 b"),
        Prompt(prompt="p", source="s"),
        Ranking(prompt="p", responses=("a", ""), scores=(0.5, -1.0), metadata=({"q": 1}, {"q": None})),
    ],
)
def test_every_kind_of_record_can_be_prepared(record, tmp_path):
    records.write(tmp_path / "a.jsonl", [record])
    preparation.prepare(type(record), [tmp_path / "a.jsonl"], tmp_path, name="a", validation=0, test=0)
    assert list(prepared.load(tmp_path, "a", type(record), "train")) == [record]


def test_a_finished_set_is_not_written_again(files, tmp_path):
    first = preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    before = snapshot(tmp_path / "data")
    assert preparation.prepare(Demonstration, files, tmp_path / "data", name="demos") == first
    assert snapshot(tmp_path / "data") == before
    assert prepared.fingerprint(tmp_path / "data", "demos") == first


def test_changed_content_or_shares_replace_the_set(files, tmp_path):
    prepare = lambda **kwargs: preparation.prepare(Demonstration, files, tmp_path / "data", name="demos", **kwargs)  # noqa: E731
    fingerprints = [prepare(), prepare(validation=0.3)]
    records.write(files[0], demonstrations(10))
    fingerprints.append(prepare())
    assert len(set(fingerprints)) == 3
    sizes = [len(prepared.load(tmp_path / "data", "demos", Demonstration, split)) for split in ("train", "test")]
    assert sizes[0] <= 60


def test_the_fingerprint_depends_on_the_content_and_not_on_file_names(files, tmp_path):
    first = preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    moved = [path.rename(path.parent / f"moved_{path.name}") for path in files]
    assert preparation.prepare(Demonstration, moved, tmp_path / "data", name="demos") == first
    assert "moved_" in prepared.load(tmp_path / "data", "demos", Demonstration, "train")[0].where


@pytest.mark.parametrize("stop_at", [1, 120])
def test_an_incomplete_set_is_rejected_and_replaced(files, tmp_path, monkeypatch, stop_at):
    def interrupted(*args):
        calls.append(args)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return split_of(*args)

    calls, split_of = [], records.split_of
    monkeypatch.setattr(records, "split_of", interrupted)
    monkeypatch.setattr(prepared, "_CHUNK", 50)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    with pytest.raises(DataError, match="demos: expected a prepared data set, found none or an incomplete one"):
        prepared.load(tmp_path / "data", "demos", Demonstration, "train")
    monkeypatch.undo()
    preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    found = [prepared.load(tmp_path / "data", "demos", Demonstration, split) for split in ("train", "validation")]
    assert sum(map(len, found)) <= 200


def test_an_invalid_line_is_named_and_leaves_the_old_set(files, tmp_path):
    preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    before = snapshot(tmp_path / "data")
    with files[0].open("a") as file:
        file.write('{"prompt": "p"}\n')
    with pytest.raises(RecordError, match=r"a\.jsonl:151: response: expected in a Demonstration, found only prompt"):
        preparation.prepare(Demonstration, files, tmp_path / "data", name="demos")
    assert snapshot(tmp_path / "data") == before


def test_errors_name_the_set_the_split_and_the_kind(files, tmp_path):
    prepare = lambda name, files, **shares: preparation.prepare(Demonstration, files, tmp_path, name=name, **shares)  # noqa: E731
    with pytest.raises(DataError, match="demos: expected a prepared data set, found none"):
        prepared.fingerprint(tmp_path, "demos")
    prepare("demos", files, validation=0, test=0.1)
    with pytest.raises(DataError, match=rf"{tmp_path}/demos: expected records in split 'validation', found only train"):
        prepared.load(tmp_path, "demos", Demonstration, "validation")
    with pytest.raises(DataError, match="demos: expected Ranking records, found Demonstration records"):
        prepared.load(tmp_path, "demos", Ranking, "train")
    with pytest.raises(DataError, match="demos: expected at least one file of Demonstration records, found none"):
        prepare("demos", [])
    with pytest.raises(RecordError, match="missing.jsonl: expected a file"):
        prepare("demos", [tmp_path / "missing.jsonl"])
    with pytest.raises(DataError, match="name: expected lower case letters, .*, found 'My set'"):
        prepare("My set", files)


def test_neither_tensorflow_nor_the_network_is_needed(files, tmp_path):
    code = f"""
import socket, sys
def connect(*args):
    raise OSError("no network")
socket.socket.connect = connect
from instructjax.data import preparation, prepared
from instructjax.records import Demonstration
preparation.prepare(Demonstration, [{str(files[0])!r}], {str(tmp_path)!r}, name="demos")
assert len(prepared.load({str(tmp_path)!r}, "demos", Demonstration, "train")[:]) > 50
assert "tensorflow" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
