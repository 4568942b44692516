"""Scores of texts, compared with examples computed by hand from the official rules and with the packages themselves."""

import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from instructjax.errors import DataError
from instructjax.evaluation import text_metrics


@pytest.mark.parametrize(
    ("answer", "references", "f1", "exact"),
    [
        ("The cat!", ["a cat"], 1.0, 1.0),
        ("cat", ["cat sat", "dog"], 2 / 3, 0.0),
        ("cat cat", ["cat"], 2 / 3, 0.0),  # a bag, not a set
        ("", [""], 1.0, 1.0),
        ("the", [""], 1.0, 1.0),  # articles are dropped
        ("cat", [""], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("$1,000", ["1000"], 1.0, 1.0),
    ],
)
def test_squad(answer, references, f1, exact):
    assert text_metrics.squad_f1(answer, references) == pytest.approx(f1)
    assert text_metrics.squad_exact(answer, references) == exact


@pytest.mark.parametrize(
    ("answer", "references", "f1"),
    [
        ("3 yards", ["3.0 yards"], 1.0),  # numbers are compared by value
        ("4 yards", ["3 yards"], 0.0),  # and another number is wrong, whatever the other words
        ("yards", ["3 yards"], 0.0),
        ("the long pass", ["long pass"], 1.0),
        ("pass pass", ["pass"], 1.0),  # a set
        ("47-yard pass", ["pass of 47 yards"], 0.57),  # rounded; 2 words of 3 and of 4
        ("", [""], 1.0),
    ],
)
def test_drop(answer, references, f1):
    assert text_metrics.drop_f1(answer, [[reference] for reference in references]) == f1


def test_bleu_is_sacrebleus():
    answers = ["the cat sat on the mat", "a dog ran far away today", "it is , however , late"]
    references = ["the cat sat on a mat", "a dog ran away today", "it is, however, late"]
    score, error = text_metrics.bleu(answers, references)
    assert score == pytest.approx(BLEU().corpus_score(answers, [references]).score, abs=1e-9)
    assert 0 < error < 50


def test_bleu_of_equal_sentences_has_no_error():
    score, error = text_metrics.bleu(["the cat sat on the mat"] * 3, ["the cat sat on the mat"] * 3)
    assert score == pytest.approx(100) and error == pytest.approx(0)


def test_rouge_is_the_best_over_references():
    score = text_metrics.rouge_l()("the cat", ["a dog", "the cat sat"])
    assert score == rouge_scorer.RougeScorer(["rougeL"]).score("the cat sat", "the cat")["rougeL"].fmeasure == 0.8


def test_a_missing_package_is_named():
    with pytest.raises(DataError, match=r"expected the package no_such_package, found none; pip install"):
        text_metrics.require("no_such_package.metrics")
