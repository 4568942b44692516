"""Records: a written record is read back, and every bad line is a RecordError that names its place."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax import records
from instructjax.errors import RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text

KINDS = (Text, Demonstration, Prompt, Ranking)

text = st.text()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
finite_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
common = {
    "user": st.none() | st.text(),
    "use_case": st.none() | st.text(),
    "labeler": st.none() | st.text(),
    "split": st.sampled_from([None, *records.SPLITS]),
    "source": st.none() | st.text(),
    "extra": st.dictionaries(st.text().map("x-".__add__), finite_values, max_size=3),
}


@st.composite
def rankings(draw):
    size = draw(st.integers(1, 9))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    scores = draw(st.tuples(*[finite] * size))
    metadata = st.none() | st.tuples(*[st.dictionaries(st.text(), finite_values, max_size=2)] * size)
    return Ranking(
        prompt=draw(text),
        responses=draw(st.tuples(*[st.text()] * size)),
        scores=scores,
        metadata=draw(metadata),
        **{name: draw(values) for name, values in common.items()},
    )


any_record = st.one_of(
    st.builds(Text, text=text, **common),
    st.builds(Demonstration, prompt=text, response=text, **common),
    st.builds(Prompt, prompt=text, **common),
    rankings(),
)


@given(any_record)
def test_parse_inverts_to_json(record):
    line = records.to_json(record)
    assert "\n" not in line
    assert records.parse(line, type(record)) == record


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
@given(written=st.lists(st.builds(Demonstration, prompt=text, response=text, **common), min_size=1, max_size=5))
def test_a_written_file_is_read_back_with_its_line_numbers(tmp_path_factory, name, written):
    path = tmp_path_factory.mktemp("records") / name
    assert records.write(path, written) == len(written)
    assert records.read(path, Demonstration) == written
    assert [record.where for record in records.read(path, Demonstration)] == [
        f"{path}:{number}" for number in range(1, len(written) + 1)
    ]


@given(st.text(st.characters()) | st.recursive(json_values, st.lists).map(json.dumps), st.sampled_from(KINDS))
def test_nothing_but_a_record_error_leaves_parse(line, kind):
    try:
        records.parse(line, kind, "a.jsonl:7")
    except RecordError as error:
        assert str(error).startswith("a.jsonl:7: ")
        assert "\n" not in str(error)


fields = {
    Text: ("text",),
    Demonstration: ("prompt", "response"),
    Prompt: ("prompt",),
    Ranking: ("prompt", "responses", "scores", "metadata"),
}


@given(st.data(), st.sampled_from(KINDS))
def test_whatever_is_accepted_can_be_written_and_read_again(data, kind):
    names = st.sampled_from([*fields[kind], "user", "split", "other"])
    values = json_values | st.sampled_from(["train", "a b", ["a", "b"], [1, 2], [2**60, 2**60 + 1], [{}, {}]])
    required = {name: data.draw(values) for name in fields[kind]}
    line = json.dumps(required | data.draw(st.dictionaries(names, values, max_size=3)))
    try:
        record = records.parse(line, kind)
    except RecordError as error:
        assert "\n" not in str(error)
    else:
        assert records.parse(records.to_json(record), kind) == record
        records.to_json(record).encode("utf-8")


RANKING = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "line", "place", "found"),
    [
        (Text, "", "expected one JSON object", "''"),
        (Text, "[1]", "expected a JSON object", "[1]"),
        (Text, '{"text": NaN}', "expected one JSON object", "NaN is not JSON"),
        (Text, '{"text": "a", "n": 1e999}', "expected one JSON object", "too large"),
        (Text, '{"text": "a", "n": ' + "1" * 5000 + "}", "expected one JSON object", "limit"),
        (Text, '{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "expected one JSON object", "recursion"),
        (Text, '{"prompt": "a"}', "text: expected in a Text", "only prompt"),
        (Text, '{"text": 3}', "text: expected text", "3"),
        (Text, '{"text": "a\\ud800"}', "expected valid Unicode", "lone surrogate"),
        (Text, '{"text": "a", "user": "\\udfff"}', "expected valid Unicode", r'"user": "\udfff'),
        (Text, '{"text": "a", "user": 3}', "user: expected text", "3"),
        (Text, '{"text": "a", "split": "dev"}', "split: expected one of train, validation, test", "'dev'"),
        (Text, "{", "expected one JSON object", "JSON over several lines"),
        (Ranking, RANKING | {"responses": ["a"] * 33}, "responses: expected at most 32 answers", "33"),
        (Ranking, RANKING | {"responses": "ab"}, "responses: expected a list of texts", "'ab'"),
        (Ranking, RANKING | {"responses": ["a", 1]}, "responses[1]: expected text", "1"),
        (Ranking, RANKING | {"scores": [1]}, "scores: expected 2 numbers", "[1]"),
        (Ranking, RANKING | {"scores": [1, True]}, "scores[1]: expected a finite number", "True"),
        (Ranking, RANKING | {"scores": [1, 10**400]}, "scores[1]: expected a finite number", "1000"),
        (Ranking, RANKING | {"metadata": [{}]}, "metadata: expected 2 objects", "[{}]"),
    ],
)
def test_an_error_names_place_expectation_and_finding(kind, line, place, found):
    line = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(RecordError) as caught:
        records.parse(line, kind, "a.jsonl:3")
    message = str(caught.value)
    assert message.startswith(f"a.jsonl:3: {place}")
    assert found in message.split(place)[1]
    assert len(message) < 250


def test_unknown_fields_are_kept_and_written():
    line = '{"prompt": "p", "where": "here", "extra": 1, "difficulty": {"a": [1]}}'
    record = records.parse(line, Prompt)
    assert record.extra == {"where": "here", "extra": 1, "difficulty": {"a": [1]}}
    assert json.loads(records.to_json(record)) == json.loads(line)


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n  \n{"text": "b"}')
    found = [(record.where, record.text) for record in records.read(path, Text)]
    assert found == [(f"{path}:2", "a"), (f"{path}:4", "b")]


def test_all_faults_of_a_file_are_listed_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n{"text": "b"\n' + '{"txt": "c"}\n' * 30)
    with pytest.raises(RecordError) as caught:
        records.read(path, Text)
    listed = str(caught.value).split("; ")
    assert listed[0] == f"{path}:2: text: expected text, found 1" and listed[1].startswith(
        f"{path}:3: expected one JSON"
    )
    assert listed[-2].startswith(f"{path}:21: text: expected in a Text") and listed[-1] == "and 12 more"
    assert len(listed) == records.MAX_FAULTS + 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "expected a file that ends in .jsonl"),
        ("a.jsonl", None, "found no such file"),
        ("a.jsonl", b"\n", "expected at least one Text record, found none"),
        ("a.jsonl", b'{"text": "a"}\n\xff\n', ":2: expected UTF-8"),
        (
            "a.jsonl",
            gzip.compress(b'{"text": "a"}', mtime=0),
            ":1: expected UTF-8, found gzip data; let the file's name end in .gz",
        ),
        ("a.jsonl", b'{\n"text": "a"\n}', "JSON over several lines: write one object per line"),
        ("a.jsonl", b'\n{"text": 1}\n', ":2: text: expected text, found 1"),
        ("a.jsonl.gz", b"not gzip", "expected gzip data"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "expected gzip data"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 30, "expected gzip data"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RecordError) as caught:
        records.read(path, Text)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_suffixes_may_be_in_capitals(tmp_path):
    for name, data in (("A.JSONL", b'{"text": "a"}'), ("A.JSONL.GZ", gzip.compress(b'{"text": "a"}', mtime=0))):
        (tmp_path / name).write_bytes(data)
        assert records.read(tmp_path / name, Text) == [Text(text="a")]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    records.write(path, [Text(text="old")])
    with pytest.raises(UnicodeEncodeError):
        records.write(path, [Text(text="new \ud800")])
    assert records.read(path, Text) == [Text(text="old")]


@given(st.lists(st.builds(Demonstration, prompt=text, response=text, **common), min_size=1))
def test_all_records_of_a_user_fall_into_one_split(drawn):
    splits = {}
    for record in drawn:
        split = records.split_of(record)
        assert split == (record.split or split) and split in records.SPLITS
        if record.user and record.split is None:
            assert splits.setdefault(record.user, split) == split


def test_shares_of_the_splits():
    drawn = [records.split_of(Prompt(prompt=f"p{i}"), validation=0.2, test=0.1) for i in range(5000)]
    assert abs(drawn.count("validation") / 5000 - 0.2) < 0.02
    assert abs(drawn.count("test") / 5000 - 0.1) < 0.02
