"""Tests that any file of records gives records or an InputError."""

import gzip
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructjax import records
from instructjax.data import selection
from instructjax.errors import RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from tests.fuzz import tries

VALID = {
    Text: {"text": "the fox", "user": "u", "source": "s", "more": {"a": [1, 2.5, None]}},
    Demonstration: {"prompt": "a", "response": "b", "split": "train", "labeler": "l"},
    Prompt: {"prompt": "a\nb", "use_case": "chat", "split": None},
    Ranking: {
        "prompt": "a",
        "responses": ["b", "c", ""],
        "scores": [2, 1.5, -1e3],
        "metadata": [{"overall": 3}, {}, {"toxic": False}],
    },
}
KINDS = pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
FILE = b"".join(json.dumps(VALID[Ranking] | {"n": n}).encode() + b"\n" for n in range(3))
DEEP = b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@KINDS
@tries.tries
@given(data=st.data())
def test_records_with_changed_fields(data, kind):
    line = tries.as_json(data.draw(tries.changed_json(VALID[kind]))).decode()
    with tries.only_input_errors():
        record = records.parse(line, kind, "a.jsonl:1")
        assert records.parse(records.to_json(record), kind) == record
        records.to_json(record).encode()
        assert records.split_of(record) in records.SPLITS
        if kind is Ranking:
            chosen = selection.choose_by_content(record).record
            assert chosen is None or len(set(chosen.scores)) > 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@tries.tries
@given(content=tries.any_bytes(FILE))
@example(content=DEEP)
@example(content=b"\xef\xbb\xbf" + FILE)
@example(content=FILE.decode().encode("utf-16"))
def test_files_of_any_bytes(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, compresslevel=1) if name.endswith("gz") else content)
    with tries.only_input_errors():
        assert records.read(path, Ranking)


@tries.tries
@given(content=tries.any_bytes(gzip.compress(FILE * 50, mtime=0)))
def test_damaged_gzip(tmp_path, content):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    with tries.only_input_errors():
        assert records.read(path, Ranking)


@pytest.mark.parametrize("line", ['{"a\\nb": 1}', '{"%s": 1}' % ("x" * 5000), '{"\\ud800": 1}'])
def test_errors_shorten_and_escape_field_names(line):
    with pytest.raises(RecordError) as error:
        records.parse(line, Text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
