"""Tests that `convert.py` writes our JSON lines from any format, and that its counts add up."""

import json
import re

import pytest

from instructjax import records
from instructjax.records import Demonstration, Ranking
from tests import local_data, scripts
from tests.local_data import DATA

PAIRS = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "a", "rejected": "c"},
    {"prompt": "p", "chosen": "b", "rejected": "c"},
    {"prompt": "q", "chosen": "a", "rejected": "a"},
    {"prompt": " ", "chosen": "a", "rejected": "b"},
]


def convert(tmp_path, kind, source, *flags):
    """Returns the counts that the script prints, by what they count."""
    output = f"--output={tmp_path / 'out.jsonl'}"
    lines = scripts.run("convert.py", f"--kind={kind}", f"--source={source}", output, *flags).splitlines()
    counts = {}
    for line in lines:
        if found := re.fullmatch(r"(in|used|left out): (\d+)(?: \((.*)\))?", line):
            counts[found[3] or found[1]] = int(found[2])
    left_out = sum(count for name, count in counts.items() if name not in ("in", "used"))
    assert counts["in"] == counts["used"] + left_out
    return counts, lines


def test_pairs_become_a_ranking_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    counts, lines = convert(tmp_path, "rankings", tmp_path / "in.jsonl")
    assert counts == {"in": 5, "used": 3, "empty text": 1, "equal answers with different scores": 1}
    assert lines[-2:] == ["merged: 3 rankings became 1", f"{tmp_path}/out.jsonl: 1 rankings"]
    expected = Ranking(prompt="p", responses=("a", "b", "c"), scores=(3, 2, 1))
    assert records.read(tmp_path / "out.jsonl", Ranking) == [expected]
    _, lines = convert(tmp_path, "rankings", tmp_path / "in.jsonl", "--nomerge_pairs")
    assert lines[-1] == f"{tmp_path}/out.jsonl: 3 rankings"


def test_invalid_rows_are_errors_or_counted(tmp_path):
    (tmp_path / "in.csv").write_text("question,answer\na,b\n,c\n")
    with pytest.raises(scripts.Left, match="in.csv:3: prompt: expected in a Demonstration, found only response"):
        convert(tmp_path, "demonstrations", tmp_path / "in.csv", "--fields=prompt=question,response=answer")
    flags = ["--fields=prompt=question,response=answer", "--skip_invalid"]
    counts, _ = convert(tmp_path, "demonstrations", tmp_path / "in.csv", *flags)
    assert counts == {"in": 2, "used": 1, "not a record": 1}
    assert records.read(tmp_path / "out.jsonl", Demonstration) == [Demonstration(prompt="a", response="b")]


# Every folder of the local data with records: (kind, files, names of fields, records in).
SETS = [
    ("demonstrations", "dolly_15k/*.gz", "", 15_015),
    ("demonstrations", "e2e_human_rankings/*_references.jsonl.gz", "", 9_365),
    ("rankings", "e2e_human_rankings/[qn]*.gz", "", 7_218),
    ("rankings", "gpt3_explanations_k5", "", 2_491),
    ("demonstrations", "gsm8k", "prompt=question, response=answer", 8_792),
    ("prompts", "hellaswag", "prompt=ctx", 10_042),
    ("demonstrations", "instructgpt_samples/squadv2*.gz", "prompt=context, response=sample", None),
    ("text", "oasst1_en/train*.gz", "", 39_283),
    ("demonstrations", "oasst1_en/validation_demonstrations.jsonl.gz", "", 419),
    ("rankings", "oasst1_en/validation_rankings.jsonl.gz", "", 416),
    ("text", "openstax_textbooks", "", 1_263),
    ("prompts", "prompts", "", 3_534),
    ("prompts", "realtoxicityprompts_subset", "", 5_000),
    ("prompts", "self_instruct/*.gz", "", 427),
    ("prompts", "squad_v2_dev_half", "prompt=question", 6_078),
    ("text", "storybooks", "", 732),
    ("text", "standard_ebooks", "", 2_443),
    ("prompts", "t0_p3_subset", "", 14_854),
    ("demonstrations", "truthfulqa/judge*.gz", "", 44_868),
    ("prompts", "truthfulqa/TruthfulQA.csv", "prompt=Question", 817),
    ("text", "crows_pairs", "text=sent_more", 1_508),
    ("text", "winogender/all_sentences.tsv", "text=sentence", 720),
]


@pytest.mark.skipif(not DATA.is_dir(), reason=local_data.ABSENT)
@pytest.mark.parametrize(
    ("kind", "source", "names", "count"),
    [
        pytest.param(*found, id=found[1], marks=pytest.mark.slow if found[3] is None or found[3] > 3000 else ())
        for found in SETS
    ],
)
def test_every_folder_of_the_local_data_goes_in(tmp_path, kind, source, names, count):
    counts, _ = convert(tmp_path, kind, DATA / source, f"--fields={names}")
    assert counts["used"] > 0.6 * counts["in"]
    assert count is None or counts["in"] == count
