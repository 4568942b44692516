"""Records"""

import dataclasses
import gzip
import json
import os
import pathlib

from instructjax import records
from instructjax.errors import RecordError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.sources import e2e_records, texts
from instructjax.sources.public_sets import SETS
from instructjax.stages.run import Run
from tests.recipes import RECORDS, changed, prepare, recipe
from tests.wrong_input.fault import fault

RANKING = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}


def read(tmp_path, content, kind=Text, name="a.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return records.read(path, kind)


def read_ranking(tmp_path, **changes):
    return read(tmp_path, json.dumps(RANKING | changes), Ranking)


def prepared(tmp_path, name, index=4, changes=(), **values):
    """Prepares the records of a small recipe after changing fields in one line of one file."""
    lines = [{**record, "split": ("train", "validation", "test")[i % 3]} for i, record in enumerate(RECORDS[name])]
    lines[index] |= values
    config = recipe(tmp_path, **{name: [json.dumps(line) for line in lines]})
    return prepare(changed(config, **dict(changes)), tmp_path / "run")


@fault("a missing file", "PATH: expected a file of Text records, found no such file")
def test_missing_file(tmp_path):
    records.read(tmp_path / "a.jsonl", Text)


@fault("a folder instead of a file", "PATH: expected a file of Text records, found a folder")
def test_a_folder(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    records.read(tmp_path / "a.jsonl", Text)


@fault("a file name with another ending", "PATH: expected a file that ends in .jsonl or .jsonl.gz")
def test_file_ending(tmp_path):
    read(tmp_path, '{"text": "a"}', name="a.json")


@fault("a file that cannot be read", "PATH: expected a file that can be read, found: TEXT")
def test_unreadable(tmp_path):
    os.symlink("/proc/self/mem", tmp_path / "a.jsonl")  # even root cannot read its start
    records.read(tmp_path / "a.jsonl", Text)


@fault(
    "a public set without its files and the internet",
    "PATH: expected this file, or the internet to download it from PATH, found neither: TEXT",
)
def test_public_set_without_internet(tmp_path, monkeypatch):
    nowhere = dataclasses.replace(SETS["dolly"], url=f"file://{tmp_path}/nowhere/")
    monkeypatch.setitem(SETS, "dolly", nowhere)
    config = recipe(tmp_path)
    prepare(changed(config, files__prompts="public:dolly", files__public=str(tmp_path)), tmp_path / "run")


@fault(
    "a public set that is not known",
    "files.prompts: expected one of TEXT after public:, found 'doly'",
)
def test_unknown_public_set(tmp_path):
    prepare(changed(recipe(tmp_path), files__prompts="public:doly"), tmp_path / "run")


@fault("an empty file", "PATH: expected at least one Text record, found none")
def test_empty(tmp_path):
    read(tmp_path, "\n\n")


@fault("bytes that are not UTF-8", "PATH:N: expected UTF-8, found invalid start byte")
def test_not_utf8(tmp_path):
    read(tmp_path, b'{"text": "caf\xe9"}\n{"text": "\xff"}'.replace(b"caf\xe9", b"cafe"))


@fault("a file in UTF-16", "PATH:N: expected UTF-8, found UTF-16")
def test_utf16(tmp_path):
    read(tmp_path, '{"text": "a"}\n'.encode("utf-16"))


@fault("a `.gz` file that is not gzip", "PATH: expected gzip data, found a damaged file (TEXT)")
def test_not_gzip(tmp_path):
    read(tmp_path, '{"text": "a"}', name="a.jsonl.gz")


@fault("a truncated `.gz` file", "PATH: expected gzip data, found a damaged file (Compressed file ended before TEXT)")
def test_truncated_gzip(tmp_path):
    read(tmp_path, gzip.compress(b'{"text": "a"}\n' * 99)[:-9], name="a.jsonl.gz")


@fault("a line that is too long", "PATH:N: expected a line of at most N bytes, found a longer one")
def test_long_line(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.truncate(records.MAX_LINE + 100)  # zeros, which take no space on the disk
    records.read(tmp_path / "a.jsonl", Text)


@fault("a line that is not JSON", 'PATH:N: expected one JSON object, found \'{"text": "a fox"\' (TEXT)')
def test_not_json(tmp_path):
    read(tmp_path, '{"text": "a"}\n{"text": "a fox"\n')


@fault("a line with a list", "PATH:N: expected a JSON object, found ['a', 'fox']")
def test_a_list(tmp_path):
    read(tmp_path, '["a", "fox"]')


@fault("a score that is NaN", "PATH:N: expected one JSON object, found TEXT (NaN is not JSON)")
def test_nan(tmp_path):
    read_ranking(tmp_path, scores=[1, float("nan")])


@fault("a number that is too large for a float", "PATH:N: expected one JSON object, found TEXT ('1e999' is too large)")
def test_a_large_number(tmp_path):
    read(tmp_path, '{"text": "a", "n": 1e999}')


@fault(
    "lists that are nested too deeply", "PATH:N: expected one JSON object, found TEXT (maximum recursion depth TEXT)"
)
def test_nested_too_deeply(tmp_path):
    read(tmp_path, '{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}")


@fault("a missing field", "PATH:N: response: expected in a Demonstration, found only answer, prompt")
def test_missing_field(tmp_path):
    read(tmp_path, '{"prompt": "a", "answer": "b"}', Demonstration)


@fault("a number instead of text", "PATH:N: prompt: expected text, found 3")
def test_number_for_text(tmp_path):
    read(tmp_path, '{"prompt": 3}', Prompt)


@fault("half of a surrogate pair", "PATH:N: expected valid Unicode, found a lone surrogate at the end of TEXT")
def test_surrogate(tmp_path):
    read(tmp_path, '{"text": "a\\ud83e"}')


@fault("an unknown split", "PATH:N: split: expected one of train, validation, test, found 'dev'")
def test_split(tmp_path):
    read(tmp_path, '{"text": "a", "split": "dev"}')


@fault("answers that are not a list", "PATH:N: responses: expected a list of texts, found 'ab'")
def test_not_a_list(tmp_path):
    read_ranking(tmp_path, responses="ab")


@fault("an answer without a score", "PATH:N: scores: expected 2 numbers, found [1]")
def test_missing_score(tmp_path):
    read_ranking(tmp_path, scores=[1])


@fault("a score that is not a number", "PATH:N: scores[N]: expected a finite number, found 'good'")
def test_score_is_not_a_number(tmp_path):
    read_ranking(tmp_path, scores=[1, "good"])


@fault("metadata for another number of answers", "PATH:N: metadata: expected 2 objects, found [{'overall': 7}]")
def test_metadata(tmp_path):
    read_ranking(tmp_path, metadata=[{"overall": 7}])


@fault(
    "a prompt that is too long, with `data.strict`",
    "PATH:N: prompt: expected at most 16 tokens (data.max_prompt), found N",
)
def test_long_prompt(tmp_path):
    prepared(tmp_path, "prompts", prompt="a fox " * 40)


@fault(
    "a response that is too long, with `data.strict`",
    "PATH:N: response: expected at most 12 tokens (data.max_response), found N",
)
def test_long_response(tmp_path):
    prepared(tmp_path, "demonstrations", response="a fox " * 40)


@fault(
    "more answers than `comparisons.max_answers`",
    "PATH:N: responses: expected at most 2 (comparisons.max_answers), found 3",
)
def test_many_answers(tmp_path):
    answers = {"responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    prepared(tmp_path, "rankings", changes={"comparisons__max_answers": 2, "comparisons__min_answers": 2}, **answers)


@fault(
    "an empty split that a stage needs",
    "PATH: expected Prompt records in the split validation, found only train (N); "
    'add records with "split": "validation", or change data.validation or data.test',
)
def test_empty_split(tmp_path):
    lines = [json.dumps({**record, "split": "train"}) for record in RECORDS["prompts"]]
    Run(recipe(tmp_path, prompts=lines), tmp_path / "run").require("ppo")


@fault("an empty text, with `data.strict`", "PATH:N: prompt: expected text, found an empty one")
def test_empty_text(tmp_path):
    prepared(tmp_path, "prompts", prompt="")


@fault(
    "a ranking in which all answers tie, with `data.strict`",
    "PATH:N: scores: expected at least one preference, found all 2 answers tied",
)
def test_tied(tmp_path):
    prepared(tmp_path, "rankings", scores=[1, 1])


@fault(
    "equal answers with different scores, with `data.strict`",
    "PATH:N: responses: expected one score for equal answers, found several",
)
def test_equal_answers(tmp_path):
    prepared(tmp_path, "rankings", responses=["a", "a"])


@fault(
    "a split in which no record can be used",
    "PATH: expected Prompt records in the split test that can be used, found none of N: "
    "prompt over data.max_prompt: N; prompts have N to N tokens, half of them up to N, "
    "90 % up to N, 99 % up to N: raise data.max_prompt (16)",
)
def test_lost_split(tmp_path):
    long = [{"prompt": "a fox " * 40, "split": "test"} for _ in range(4)]
    lines = [{**record, "split": ("train", "validation")[i % 2]} for i, record in enumerate(RECORDS["prompts"])]
    config = recipe(tmp_path, prompts=[json.dumps(line) for line in lines + long])
    Run(changed(config, data__strict=False), tmp_path / "run").require("evaluate")


@fault(
    "a single test prompt",
    "PATH: expected at least 2 different prompts in the split test for evaluate, found 1; "
    'add records with "split": "test", or raise data.test or evaluate.prompts',
)
def test_one_test_prompt(tmp_path):
    lines = [{**record, "split": ("train", "validation")[i % 2]} for i, record in enumerate(RECORDS["prompts"])]
    lines.append({"prompt": "the fox", "split": "test"})
    config = recipe(tmp_path, prompts=[json.dumps(line) for line in lines])
    Run(config, tmp_path / "run").require("evaluate")


@fault("a stage without its records", "files.rankings: expected a file of Ranking records for reward, found none")
def test_no_rankings(tmp_path):
    Run(changed(recipe(tmp_path), files__rankings=""), tmp_path / "run").require("pretrain", "sft", "reward")


@fault(
    "a separator that leaves no room for a prompt",
    "data.max_prompt: expected more than the N tokens of data.separator, found 16",
)
def test_no_room_for_the_separator(tmp_path):
    prepare(changed(recipe(tmp_path), data__separator="\n" * 16), tmp_path / "run")


@fault("neither text nor a tokenizer", "tokenizer.path: expected a tokenizer, or text to train one on, found neither")
def test_no_tokenizer(tmp_path):
    prepare(changed(recipe(tmp_path), files__text="", files__demonstrations=""), tmp_path / "run")


@fault(
    "several faults in one file",
    "PATH:N: text: expected text, found 1; PATH:N: text: expected text, found 2",
)
def test_several_faults(tmp_path):
    read(tmp_path, '{"text": 1}\n{"text": 2}\n')


@fault(
    "gzip data in a file whose name does not say so",
    "PATH:N: expected UTF-8, found gzip data; let the file's name end in .gz",
)
def test_gzip_without_suffix(tmp_path):
    read(tmp_path, gzip.compress(b'{"text": "a"}\n'))


@fault(
    "JSON over several lines",
    "PATH:N: expected one JSON object, found '{' (JSON over several lines: write one object per line, or a list in a "
    "file that ends in .json)",
)
def test_json_over_several_lines(tmp_path):
    read(tmp_path, "{")


@fault(
    "a file of another format",
    "PATH: expected a file that ends in .jsonl, .json, .csv, .tsv (also with .gz or .zst) or .parquet, .arrow",
)
def test_format(tmp_path):
    (tmp_path / "text.xml").write_text("<text/>")
    prepare(changed(recipe(tmp_path), files__text=str(tmp_path / "text.xml")), tmp_path / "run")


@fault("a pattern that no file matches", "PATH: expected files that match this pattern, found none")
def test_pattern(tmp_path):
    prepare(changed(recipe(tmp_path), files__text=f"{tmp_path}/*.parquet"), tmp_path / "run")


@fault("names of fields without =", "files.fields: expected OURS=THEIRS, such as prompt=question, found 'question'")
def test_fields(tmp_path):
    prepare(changed(recipe(tmp_path), files__fields="question"), tmp_path / "run")


@fault(
    "a pair whose answers have different prompts",
    "PATH:N: rejected: expected the prompt of chosen, up to the assistant's last turn, found another",
)
def test_pair_of_two_prompts(tmp_path):
    pair = {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: d"}
    prepare(recipe(tmp_path, rankings=[json.dumps(pair)]), tmp_path / "run")


@fault("a damaged Parquet file", "PATH: expected parquet data, found TEXT")
def test_parquet(tmp_path):
    (tmp_path / "text.parquet").write_text("PAR1")
    prepare(changed(recipe(tmp_path), files__text=str(tmp_path / "text.parquet")), tmp_path / "run")


@fault("an E2E folder with a missing file", "PATH: expected the E2E files TEXT, found no dev_references.jsonl.gz")
def test_e2e_files(tmp_path):
    e2e_records.load(tmp_path)


@fault("an unknown set of texts", "texts: expected one of TEXT, found 'wikipedia'")
def test_text_set(tmp_path):
    texts.load(tmp_path, "wikipedia")


@fault(
    "a meaning representation with another syntax",
    "PATH:N: mr: expected slot[value], slot[value], ..., found 'a place'",
)
def test_meaning_representation(tmp_path):
    for file in (*e2e_records.REFERENCES, "quality.jsonl.gz"):
        rating = {"prompt": "p", "mr": "a place", "response": "r", "item": 1, "rater": 1, **RANKING}
        records.write(tmp_path / file, [records.from_dict(rating, Prompt)])
    e2e_records.load(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path):
    assert read(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n') == [Text(text="a")]


def test_a_line_break_in_a_file_name_is_escaped(tmp_path):
    path = pathlib.Path(tmp_path / "a\nb.jsonl")
    try:
        records.read(path, Text)
    except RecordError as error:
        assert str(error) == f"{tmp_path}/a\\nb.jsonl: expected a file of Text records, found no such file"
