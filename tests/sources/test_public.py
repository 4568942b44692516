"""Tests that public sets are read by name from files in their own schema, and that digests are checked."""

import gzip
import hashlib
import json

import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from instructjax import records
from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt, Ranking, Text
from instructjax.sources import public, registry
from instructjax.sources.public_sets import SETS
from tests import scripts
from tests.recipes import changed, recipe

HH = "\n\nHuman: Hi.\n\nAssistant: "
POST = {"id": "t3_x", "post": "My cat sleeps, all day.", "title": "Cat = lazy?", "subreddit": "cats"}
TLDR = "SUBREDDIT: r/cats\n\nTITLE: Cat = lazy?\n\nPOST: My cat sleeps, all day.\n\nTL;DR:"
TREE = {"text": "Hi.", "role": "prompter", "lang": "en"}
REPLIES = [{"text": text, "role": "assistant", "rank": rank, "replies": []} for rank, text in enumerate(["a", "b"])]
COMPLETIONS = [{"model": "m", "response": text, "overall_score": score} for text, score in (("a", 7.5), ("b", 3.0))]
RATED = {"prompt": "Hi.", "correctness": 3, "coherence": 4, "complexity": 2, "verbosity": 2}
RANKING = ("Hi.", ("a", "b"), ("a", "b"))  # prompt, answers, answers from the best

# For each set: the rows of its first file, and for each kind of records what comes out.
EXPECTED = {
    "hh": ([{"chosen": HH + "a", "rejected": HH + "b"}], {Ranking: RANKING, Prompt: "Hi."}),
    "tldr": (
        [
            {
                "info": POST,
                "summaries": [{"text": " a", "policy": "ref", "note": None}, {"text": " b", "policy": "sup4"}],
                "choice": 1,
                "worker": "w",
                "batch": "batch3",
                "split": "valid1",
                "extra": {"confidence": 8},
            }
        ],
        {Ranking: (TLDR, (" a", " b"), (" b", " a")), Prompt: TLDR},
    ),
    "webgpt": (
        [
            {
                "question": {"dataset": "eli5", "id": "1", "full_text": "Hi."},
                "quotes_0": {"title": [], "extract": []},
                "answer_0": "a",
                "score_0": 0.5,
                "quotes_1": {"title": [], "extract": []},
                "answer_1": "b",
                "score_1": -0.5,
            }
        ],
        {Ranking: RANKING, Prompt: "Hi."},
    ),
    "shp": (
        [
            {
                "post_id": "q",
                "domain": "askacademia_train",
                "history": "Hi.",
                "score_A": 340,
                "score_B": 166,
                "human_ref_A": "a",
                "human_ref_B": "b",
                "labels": 1,
            }
        ],
        {Ranking: RANKING, Prompt: "Hi."},
    ),
    "oasst1": (
        [{"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": TREE | {"replies": REPLIES}}],
        {Ranking: RANKING, Prompt: "Hi.", Demonstration: ("Hi.", "a"), Text: "Human: Hi.\n\nAssistant: a"},
    ),
    "dolly": (
        [{"instruction": "Sum up.", "context": "c", "response": "r", "category": "summarization"}],
        {Demonstration: ("Sum up.\n\nc", "r"), Prompt: "Sum up.\n\nc"},
    ),
    "alpaca": (
        [{"instruction": "Add.", "input": "1 1", "output": "2"}],
        {Demonstration: ("Add.\n\n1 1", "2"), Prompt: "Add.\n\n1 1"},
    ),
    "ultrafeedback": (
        [{"source": "evol_instruct", "instruction": "Hi.", "models": ["m"], "completions": COMPLETIONS}],
        {Ranking: RANKING, Prompt: "Hi."},
    ),
    "helpsteer": (
        [RATED | {"response": "a", "helpfulness": 4}, RATED | {"response": "b", "helpfulness": 0}],
        {Ranking: RANKING, Prompt: "Hi."},
    ),
    "e2e": (
        [{"mr": "name[Aromi], area[riverside]", "ref": 'Aromi is by the river, "really".'}],
        {
            Demonstration: ("name[Aromi], area[riverside]", 'Aromi is by the river, "really".'),
            Prompt: "name[Aromi], area[riverside]",
        },
    ),
}
CASES = [(name, kind) for name, (_, kinds) in EXPECTED.items() for kind in kinds]


def content(file, rows):
    """Returns the bytes of a file of a set with these rows."""
    if file.endswith(".parquet"):
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if file.endswith(".csv"):
        quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in (rows[0], rows[0].values()))
        return "".join(f"{line}\r\n" for line in quoted).encode()
    if file == "alpaca_data.json":
        return json.dumps(rows, indent=4).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if file.endswith(".gz") else lines


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Writes a folder of all sets, with one file each, and pins their digests; returns its path."""
    for name, (rows, _) in EXPECTED.items():
        file = next(iter(SETS[name].files))
        path = tmp_path / "sets" / name / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content(file, rows))
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        monkeypatch.setitem(SETS, name, replaced(SETS[name], files={file: digest}))
    return tmp_path / "sets"


def replaced(public_set, **changes):
    return type(public_set)(**(vars(public_set) | changes))


def read(name, kind, folder):
    return list(records.valid(public.read(name, kind, "files.rankings", folder)))


def summary(record):
    if isinstance(record, Ranking):
        order = sorted(range(len(record.scores)), key=lambda i: -record.scores[i])
        return record.prompt, record.responses, tuple(record.responses[i] for i in order)
    if isinstance(record, Demonstration):
        return record.prompt, record.response
    return record.text if isinstance(record, Text) else record.prompt


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_each_set_is_read_by_name_from_a_local_copy(copies, name, kind):
    found = read(name, kind, copies)
    assert {summary(record) for record in found} == {EXPECTED[name][1][kind]}
    assert {record.source for record in found} == {name}


def test_the_table_is_complete():
    assert SETS.keys() == EXPECTED.keys()
    names = {name: kind for kind, name in prepared.SET_NAMES.items()}
    for name, found in SETS.items():
        assert {names[kind] for kind in found.fields} == EXPECTED[name][1].keys()
        assert found.citation and found.license and found.url.startswith("https://") and found.url.endswith("/")
        for digest in filter(None, found.files.values()):
            kind, _, value = digest.partition(":")
            assert len(bytes.fromhex(value)) == {"sha256": 32, "git": 20}[kind]


def test_the_page_lists_the_table():
    page = (scripts.SCRIPTS.parent / "docs" / "formats.md").read_text()
    for name, found in SETS.items():
        pinned = "yes" if all(found.files.values()) else "no"
        assert f"| `{name}` | {', '.join(found.fields)} | {found.license} | {found.citation} | {pinned} |" in page


def test_use_cases_and_labelers_are_kept(copies):
    assert read("dolly", Prompt, copies)[0].use_case == "summarization"
    assert read("tldr", Ranking, copies)[0].labeler == "w"


def test_missing_files_are_downloaded_once_and_checked(copies, tmp_path, monkeypatch, capsys):
    file = next(iter(SETS["dolly"].files))
    elsewhere = replaced(SETS["dolly"], url=(copies / "dolly").as_uri() + "/")
    monkeypatch.setitem(SETS, "dolly", elsewhere)
    assert len(read("dolly", Demonstration, tmp_path / "cache")) == 1
    assert "CC BY-SA 3.0" in capsys.readouterr().out
    (copies / "dolly" / file).unlink()
    assert len(read("dolly", Demonstration, tmp_path / "cache")) == 1  # from the cache
    with pytest.raises(DataError, match=r"expected this file, or the internet to download it from file://\S+, found"):
        read("dolly", Demonstration, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.jsonl"))


def test_another_file_is_refused_and_not_kept(copies, tmp_path, monkeypatch):
    file = next(iter(SETS["dolly"].files))
    wrong = replaced(SETS["dolly"], url=(copies / "dolly").as_uri() + "/", files={file: "sha256:" + "0" * 64})
    monkeypatch.setitem(SETS, "dolly", wrong)
    for folder in (copies, tmp_path / "cache"):
        with pytest.raises(DataError, match=r"expected sha256:0+, found sha256:[0-9a-f]+: another file than that of"):
            read("dolly", Demonstration, folder)
    assert (copies / "dolly" / file).exists() and not (tmp_path / "cache" / "dolly" / file).exists()


def test_the_digest_of_a_file_that_is_not_pinned_is_noted_at_the_first_use(copies, monkeypatch):
    file = next(iter(SETS["dolly"].files))
    monkeypatch.setitem(SETS, "dolly", replaced(SETS["dolly"], files={file: ""}))
    read("dolly", Demonstration, copies)
    read("dolly", Demonstration, copies)
    path = copies / "dolly" / file
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="expected sha256:"):
        read("dolly", Demonstration, copies)


def test_the_digests_of_git_are_those_of_git(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")  # git hash-object
    assert public._digest(epath.Path(tmp_path / "a"), "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"


def test_unknown_sets_and_kinds_are_named(copies):
    with pytest.raises(ConfigError, match="^files.rankings: expected one of hh, tldr, .* after public:, found 'no'$"):
        read("no", Ranking, copies)
    with pytest.raises(
        ConfigError, match="^files.rankings: expected records that dolly has: demonstrations, prompts; f"
    ):
        read("dolly", Ranking, copies)


def test_a_recipe_reads_them_and_merges_pairs(copies, tmp_path):
    hh = copies / "hh" / next(iter(SETS["hh"].files))
    more = [{"chosen": HH + first, "rejected": HH + second} for first, second in ("ab", "ac", "bc")]
    hh.write_bytes(content(hh.name, more))
    SETS["hh"].files[next(iter(SETS["hh"].files))] = ""
    own = str(tmp_path / "own.jsonl")
    config = changed(recipe(tmp_path), files__rankings=f"{own}, public:hh, public:webgpt", files__public=str(copies))
    source, folder = registry.make_source(config), epath.Path(tmp_path / "data")
    folder.mkdir()
    source.write(folder)
    names = [path.name for path in source.files(Ranking, folder)]
    assert names == ["own.jsonl", "hh_rankings.jsonl", "webgpt_rankings.jsonl"]
    (found,) = records.read(folder / "hh_rankings.jsonl", Ranking)
    assert (found.responses, found.scores, found.source) == (("a", "b", "c"), (3, 2, 1), "hh")


def test_convert_reads_them(copies, tmp_path):
    output = tmp_path / "out.jsonl"
    flags = ["--kind=demonstrations", "--source=public:dolly,public:alpaca", f"--public={copies}"]
    assert "used: 2" in scripts.run("convert.py", *flags, f"--output={output}")
    assert [record.source for record in records.read(output, Demonstration)] == ["dolly", "alpaca"]
