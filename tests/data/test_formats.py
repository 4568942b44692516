"""Tests that files of every format and shape give records, and that those that do not are named."""

import csv
import gzip
import io
import json

import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from instructjax import records
from instructjax.data import formats, shapes
from instructjax.errors import ConfigError, RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text

ROWS = [
    {"prompt": "name a color, please", "responses": ["dark\nred", "é, ▁"], "scores": [2, 1], "user": "u"},
    {"prompt": 'say "hi"', "responses": ["hi", "no"], "scores": [0.5, 3.25], "user": "v"},
]
EXPECTED = [records.from_dict(row, Ranking) for row in ROWS]


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_table(rows, delimiter):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    lists = [{name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows]
    writer.writerows(lists)
    return text.getvalue().encode()


def as_parquet(rows):
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_arrow(rows, new):
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.jsonl": as_lines(ROWS),
    "a.JSONL.GZ": gzip.compress(as_lines(ROWS)),
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": as_lines(ROWS),
    "a.csv": as_table(ROWS, ","),
    "marked.csv": b"\xef\xbb\xbf" + as_table(ROWS, ","),
    "a.csv.gz": gzip.compress(as_table(ROWS, ",")),
    "a.tsv": as_table(ROWS, "\t"),
    "a.parquet": as_parquet(ROWS),
    "a.arrow": as_arrow(ROWS, pyarrow.ipc.new_stream),
    "file.arrow": as_arrow(ROWS, pyarrow.ipc.new_file),
    "a.jsonl.zst": pyarrow.compress(as_lines(ROWS), "zstd", asbytes=True),
    "a.json.zst": pyarrow.compress(json.dumps(ROWS).encode(), "zstd", asbytes=True),
}


def read(path, kind, names=""):
    return list(records.valid(formats.read(path, kind, shapes.parse_names(names, "files.fields"))))


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    found = read(tmp_path / name, Ranking)
    assert found == EXPECTED
    assert all(record.where.startswith(f"{tmp_path / name}:") for record in found)


HUMAN = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
BOT = {"role": "assistant", "content": "Hello!"}
RUDE = {"role": "assistant", "content": "What?"}
MORE = {"role": "user", "content": "And?"}
HH = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant: "
TURNS = "Human: Hi.\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant:"
PAIR = {"responses": ["Hello!", "What?"], "scores": [1, 0]}


@pytest.mark.parametrize(
    ("kind", "row", "fields"),
    [
        (Ranking, {"prompt": "p", "chosen": "Hello!", "rejected": "What?"}, {"prompt": "p", **PAIR}),
        (Ranking, {"chosen": HH + "Hello!", "rejected": HH + "What?"}, {"prompt": TURNS, **PAIR}),
        (Ranking, {"chosen": [HUMAN, BOT], "rejected": [HUMAN, RUDE]}, {"prompt": "Hi.", **PAIR}),
        (Ranking, {"prompt": "Hi.", "chosen": [HUMAN, BOT], "rejected": [HUMAN, RUDE]}, {"prompt": "Hi.", **PAIR}),
        (Ranking, {"prompt": "p", "chosen": [BOT], "rejected": [RUDE]}, {"prompt": "p", **PAIR}),
        (Ranking, {"prompt": [HUMAN, BOT, MORE], "chosen": [BOT], "rejected": [RUDE]}, {"prompt": TURNS, **PAIR}),
        (
            Ranking,
            {"prompt": [HUMAN], "responses": ["a", "b"], "scores": [2, 1]},
            {"prompt": "Hi.", "responses": ["a", "b"], "scores": [2, 1]},
        ),
        (
            Ranking,
            {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]},
            {"prompt": "p", "responses": ["a", "b", "c"], "scores": [-2, -1, -3]},
        ),
        (
            Ranking,
            {"prompt": "p", "responses": ["a", "b", "c"], "choice": 1},
            {"prompt": "p", "responses": ["a", "b", "c"], "scores": [0, 1, 0]},
        ),
        (Prompt, {"chosen": HH + "Hello!", "rejected": HH + "What?"}, {"prompt": TURNS}),
        (Demonstration, {"prompt": "p", "completion": "c", "user": 3}, {"prompt": "p", "response": "c", "user": "3"}),
        (Demonstration, {"prompt": [HUMAN], "completion": [BOT]}, {"prompt": "Hi.", "response": "Hello!"}),
        (
            Demonstration,
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            {"prompt": "Add.\n\n1 1", "response": "2"},
        ),
        (Demonstration, {"instruction": "Add.", "input": "", "output": "2"}, {"prompt": "Add.", "response": "2"}),
        (
            Demonstration,
            {"instruction": "Sum up.", "context": "c", "response": "r"},
            {"prompt": "Sum up.\n\nc", "response": "r"},
        ),
        (Demonstration, {"messages": [HUMAN, BOT]}, {"prompt": "Hi.", "response": "Hello!"}),
        (
            Demonstration,
            {"messages": [SYSTEM, HUMAN, BOT]},
            {"prompt": "System: Be brief.\n\nHuman: Hi.\n\nAssistant:", "response": "Hello!"},
        ),
        (Prompt, {"messages": [HUMAN, BOT, MORE, BOT], "id": 7}, {"prompt": TURNS, "id": 7}),
        (Prompt, {"messages": [{"from": "human", "value": "Hi."}]}, {"prompt": "Hi."}),
        (Prompt, {"instruction": "Add.", "input": "1 1"}, {"prompt": "Add.\n\n1 1"}),
        (Text, {"messages": [HUMAN, BOT]}, {"text": "Human: Hi.\n\nAssistant: Hello!"}),
    ],
)
def test_every_shape_is_mapped(tmp_path, kind, row, fields):
    (tmp_path / "a.jsonl").write_bytes(as_lines([row]))
    assert read(tmp_path / "a.jsonl", kind) == [records.from_dict(fields, kind)]


@pytest.mark.parametrize(
    ("names", "row", "fields"),
    [
        ("prompt=q.text", {"q": {"text": "p", "id": 3}, "more": 1}, {"prompt": "p", "more": 1}),
        ("prompt=q.text", {"q.text": "p", "q": {"text": "other"}}, {"prompt": "p", "q": {"text": "other"}}),
        ("prompt=r/{q.name}: {t}!", {"q": {"name": "n"}, "t": 3}, {"prompt": "r/n: 3!"}),
        ("prompt=t, hints=a+b", {"t": "p", "a": 1, "b": 2}, {"prompt": "p", "hints": [1, 2]}),
        (
            "prompt=t, hints=list.*.x.y",
            {"t": "p", "list": [{"x": {"y": i}} for i in "ab"]},
            {"prompt": "p", "hints": ["a", "b"]},
        ),
        ("prompt=t, hints=list.*.x", {"t": "p", "list": [{"x": 1}, {}]}, {"prompt": "p", "list": [{"x": 1}, {}]}),
    ],
)
def test_names_may_be_paths_into_nested_fields(tmp_path, names, row, fields):
    (tmp_path / "a.jsonl").write_bytes(as_lines([row]))
    assert read(tmp_path / "a.jsonl", Prompt, names) == [records.from_dict(fields, Prompt)]


def test_cells_of_text_stay_text_even_if_they_are_json(tmp_path):
    rows = [
        {"prompt": "[1, 2]", "responses": '["{}", "b"]', "a": "1", "b": "0.5", "note": "[3]"},
        {"prompt": '[{"role": "user", "content": "Hi."}]', "responses": '["c", "d"]', "a": "2", "b": "3", "note": "{}"},
    ]
    (tmp_path / "a.csv").write_bytes(as_table(rows, ","))
    first, second = read(tmp_path / "a.csv", Ranking, "scores=a+b")
    assert first == Ranking(prompt="[1, 2]", responses=("{}", "b"), scores=(1.0, 0.5), extra={"note": "[3]"})
    assert second == Ranking(prompt="Hi.", responses=("c", "d"), scores=(2.0, 3.0), extra={"note": "{}"})


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (Demonstration, {"messages": [HUMAN, BOT, MORE, BOT]}),
        (Demonstration, {"prompt": [HUMAN, BOT, MORE], "response": "b"}),
        (Prompt, {"messages": [HUMAN, BOT, MORE]}),
        (Ranking, {"messages": [HUMAN, BOT, MORE], "responses": ["a", "b"], "scores": [2, 1]}),
        (Ranking, {"chosen": [HUMAN, BOT, MORE, BOT], "rejected": [HUMAN, BOT, MORE, RUDE]}),
        (Ranking, {"chosen": f"\n\n{TURNS} a", "rejected": f"\n\n{TURNS} b"}),
    ],
)
def test_conversations_keep_their_messages(tmp_path, kind, row):
    (tmp_path / "a.jsonl").write_bytes(as_lines([row]))
    (found,) = read(tmp_path / "a.jsonl", kind)
    contents = [HUMAN["content"], BOT["content"], MORE["content"]]
    assert found.prompt == TURNS and [message.content for message in found.prompt.messages] == contents
    records.write(tmp_path / "b.jsonl", [found])
    for again in (records.read(tmp_path / "b.jsonl", kind), read(tmp_path / "b.jsonl", kind)):
        assert again == [found] and again[0].prompt.messages == found.prompt.messages


def test_names_of_fields_can_be_given(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,hint\n2 + 2?,4,count\n")
    (found,) = read(tmp_path / "a.csv", Demonstration, "prompt=question, response=answer,")
    assert found == Demonstration(prompt="2 + 2?", response="4", extra={"hint": "count"})
    with pytest.raises(ConfigError, match="^files.fields: expected OURS=THEIRS, such as prompt=question, found 'a'$"):
        shapes.parse_names("a", "files.fields")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (Ranking, {"chosen": HH + "a", "rejected": "\n\nHuman: Ho.\n\nAssistant: b"}, "rejected: expected the prompt"),
        (Ranking, {"chosen": "a", "rejected": "b"}, 'chosen: expected a prompt, or a text that begins with "Human:"'),
        (Ranking, {"chosen": [HUMAN], "rejected": [HUMAN]}, "chosen: expected a last message by the assistant"),
        (Ranking, {"chosen": [BOT], "rejected": [RUDE]}, "chosen: expected a message before the"),
        (Ranking, {"prompt": "p", "responses": ["a"], "ranks": "1"}, "ranks: expected a list of numbers, 1"),
        (Ranking, {"prompt": "p", "responses": ["a"], "choice": 1}, "choice: expected a whole number below 1, found 1"),
        (Ranking, {"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen: expected a list of messages, found 3"),
        (Demonstration, {"messages": []}, "messages: expected a list of messages, found []"),
        (Demonstration, {"messages": [BOT]}, "messages: expected a last one by the assistant, after others"),
        (Demonstration, {"messages": [{"role": "tool", "content": "a"}]}, 'messages[0]: expected {"role": user,'),
        (Demonstration, {"instruction": 3}, "response: expected in a Demonstration, found only prompt"),
        (Prompt, {"question": "a"}, "prompt: expected in a Prompt, found only question"),
    ],
)
def test_what_has_no_shape_is_named(tmp_path, kind, row, message):
    (tmp_path / "a.jsonl").write_bytes(as_lines([row]))
    with pytest.raises(RecordError) as error:
        read(tmp_path / "a.jsonl", kind)
    assert str(error.value).startswith(f"{tmp_path}/a.jsonl:1: {message}")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.xlsx", b"", "expected a file that ends in .jsonl, .json, .csv, .tsv (also with .gz or .zst) or .parquet"),
        ("a.parquet.gz", b"", "expected a file that ends in .jsonl"),
        ("a.json", b"[1]", ":1: expected a JSON object, found 1"),
        ("a.json", b"[{]", "expected a list of JSON objects, found"),
        ("a.json", b"[]", "expected at least one Text record, found none"),
        ("a.csv", b"text\n", "expected at least one Text record, found none"),
        ("a.csv", b"text\na,b\n", ":2: expected 1 cells, found more; quote commas"),
        ("a.csv", b'text,b\n\n"x\n\ny",b\na,b,c\n', "a.csv:6: expected 2 cells, found more; quote commas"),
        ("a.csv", b"text\n\xff\n", "expected UTF-8, found invalid start byte"),
        ("a.csv", b'text\n"a\n', "expected a row of a table, found unexpected end of data"),
        ("a.parquet", b"PAR1", "expected parquet data, found"),
        ("a.arrow", b"text", "expected arrow data, found"),
        ("a.jsonl.zst", b"text", "expected a file that can be read, found: ZSTD decompress"),
        ("a.csv.gz", b"text", "expected gzip data, found a damaged file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecordError) as error:
        read(tmp_path / name, Text)
    assert str(error.value).startswith(f"{tmp_path}/{name}") and message in str(error.value)


def test_a_folder_and_a_pattern_name_files_in_order(tmp_path):
    for name in ("b.csv", "a.jsonl", "notes.txt", "sub/c.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = epath.Path(tmp_path)

    def names(path):
        return [str(file.relative_to(folder)) for file in formats.expand(path)]

    assert names(folder) == ["a.jsonl", "b.csv"]
    assert names(folder / "*.c?v") == ["b.csv"] and names(folder / "**" / "*.gz") == ["sub/c.json.gz"]
    assert names(folder / "missing.jsonl") == ["missing.jsonl"]
    (tmp_path / "a[1].jsonl").touch()
    assert names(folder / "a[1].jsonl") == ["a[1].jsonl"]
    for nothing in (folder / "*.parquet", folder / "sub" / "none*"):
        with pytest.raises(RecordError, match="expected files that match this pattern, found none"):
            formats.expand(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="expected files that hold records, in this folder, found none"):
        formats.expand(folder / "empty")
