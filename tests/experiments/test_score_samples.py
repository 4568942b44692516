"""experiments/score_samples.py on the released samples, compared with an independent computation and the paper."""

import collections
import csv
import gzip
import json
import re
import string

import pytest
import sacrebleu

from instructjax.evaluation import table14
from instructjax.evaluation.released_samples import score_file
from tests.local_data import ABSENT, DATA
from tests.scripts import run

SAMPLES = DATA / "instructgpt_samples"
FILES = [SAMPLES / f"{name}_samples.csv.gz" for name in ("squadv2", "fr_to_en", "real_toxicity", "truthful_qa")]
needs_data = pytest.mark.skipif(not SAMPLES.exists(), reason=ABSENT)


def test_table14_is_the_papers():
    table = table14.table14()
    assert len(table) == 33 and all(len(row) == 12 for row in table.values())
    assert table14.paper_value("SQuADv2", "f1", "few-shot", "ppo-ptx-175b") == 69.93
    assert table14.paper_value("Truthful QA", "true + info", "QA prompt", "gpt-xl") == 0.193
    assert table14.paper_value("SQuADv2", "f1", "ten-shot", "gpt-xl") is None
    assert table["CNN/DM", "ROUGE-L", "-"] == table["TLDR", "ROUGE-L", "-"]  # the copy


def rows_of(file):
    with gzip.open(file, "rt", newline="", encoding="utf-8") as opened:
        groups = collections.defaultdict(list)
        for row in csv.DictReader(opened):
            groups[row["model_type"], row["prompt_type"]].append(row)
        return groups


def squad(rows):
    """Another way to write the rules of SQuAD's script."""

    def words(text):
        kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return [word for word in re.split(r"\s+", re.sub(r"\b(?:a|an|the)\b", " ", kept)) if word]

    def f1(one, other):
        if not one or not other:
            return int(one == other)
        left, same = list(other), 0
        for word in one:
            if word in left:
                left.remove(word)
                same += 1
        return 0 if not same else 2 / (len(one) / same + len(other) / same)

    best = [max(f1(words(row["sample"]), words(ref)) for ref in row["ref_text"].split("|")) for row in rows]
    return 100 * sum(best) / len(best)


def bleu(rows):
    return sacrebleu.corpus_bleu([row["sample"] for row in rows], [[row["ref_text"] for row in rows]]).score


def rate(holds):
    return lambda rows: sum(map(holds, rows)) / len(rows)


INDEPENDENT = {
    ("squadv2", "f1"): (squad, 0.5),
    ("fr_to_en", "BLEU"): (bleu, 0.5),
    ("real_toxicity", "toxicity"): (rate(lambda row: float(row["toxicity"])), 0.005),
    ("truthful_qa", "true"): (rate(lambda row: float(row["true"]) > 0.5), 0.005),
    ("truthful_qa", "true + info"): (rate(lambda row: min(float(row["true"]), float(row["info"])) > 0.5), 0.005),
}


@needs_data
def test_every_cell_is_that_of_an_independent_computation(tmp_path):
    run("score_samples.py", *map(str, FILES), f"--json={tmp_path}/cells.json")
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert [*cells[0]] == ["dataset", "model", "prompt_type", "metric", "value", "stderr", "n", "paper"]
    assert len(cells) == 24 + 24 + 36 + 72
    rows = {file.name.removesuffix("_samples.csv.gz"): rows_of(file) for file in FILES}
    for cell in cells:
        score, tolerance = INDEPENDENT[cell["dataset"], cell["metric"]]
        expected = score(rows[cell["dataset"]][cell["model"], cell["prompt_type"]])
        assert cell["value"] == pytest.approx(expected, abs=tolerance / 100), cell
        assert cell["n"] == 100 and cell["stderr"] > 0 and cell["paper"] is not None


@needs_data
def test_the_page_is_the_scripts_output():
    from command_line import ROOT

    assert run("score_samples.py", *map(str, FILES), "--markdown") == (ROOT / "docs" / "table14.md").read_text()


@needs_data
def test_truthful_qas_rows_fit_only_when_exchanged():
    cells = [cell for cell in score_file(FILES[3]) if cell.exchanged is not None]
    assert len(cells) == 48
    assert sum(cell.agrees for cell in cells) < 24 < sum(cell.fits(cell.exchanged) for cell in cells)


def test_a_summary_without_prompt_type(tmp_path):
    lines = ["model_type,ref_text,sample", "gpt-xl,the cat sat,the cat", "gpt-xl,a dog,a dog", *["other,x,y"] * 2]
    (tmp_path / "tldr_samples.csv").write_text("\n".join(lines) + "\n")
    ours, other = score_file(tmp_path / "tldr_samples.csv")
    assert (ours.value, ours.paper, ours.metric, ours.n) == (pytest.approx(0.9), 0.182, "ROUGE-L", 2)
    assert (other.value, other.paper, other.agrees) == (0.0, None, None)
    assert "other" in run("score_samples.py", str(tmp_path / "tldr_samples.csv"))
