"""Scores texts against references by the public tasks' own rules (appendix D).

BLEU and ROUGE are those of sacrebleu and rouge-score, in the extra `tasks`. The rules of SQuAD, DROP and QuAC exist as
evaluation scripts, not as packages; they are restated here, and tests compare them with independent computations.
"""

from __future__ import annotations

import collections
import importlib
import re
import string
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from instructjax.errors import DataError
from instructjax.evaluation.intervals import bootstrap_error

CANNOTANSWER = "CANNOTANSWER"  # a reference of QuAC for a question that the text does not answer
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def squad_f1(answer: str, references: Sequence[str]) -> float:
    """Computes the F1 of an answer by the rules of SQuAD 2.0, in [0, 1]: the highest over all references.

    Texts are bags of words in lower case, without punctuation and articles. An empty text means "no answer": it
    matches only another empty text.
    """
    return max(_f1(squad_words(answer), squad_words(reference)) for reference in references)


def squad_exact(answer: str, references: Sequence[str]) -> float:
    """Returns 1 if an answer equals a reference by the rules of SQuAD 2.0, else 0; see `squad_f1`."""
    return float(any(squad_words(answer) == squad_words(reference) for reference in references))


def drop_f1(answer: str, references: Sequence[Sequence[str]]) -> float:
    """Computes the F1 of an answer by the rules of DROP, in [0, 1]: the highest over all references.

    Words are compared as sets, and numbers by value. If a span has numbers, an answer with none of them scores 0. The
    answer is one span, so of a reference with n spans it matches one, and scores 1 / n at most. As in DROP's script, a
    score is rounded to two digits.

    Args:
      answer: a text.
      references: right answers, each with one or more spans.
    """
    words = set(_drop_words(answer))
    return max(
        round(max(_drop_f1(words, set(_drop_words(span))) for span in spans) / len(spans), 2) for spans in references
    )


def drop_exact(answer: str, references: Sequence[Sequence[str]]) -> float:
    """Computes whether an answer equals a reference of one span by the rules of DROP, 0 or 1; see `drop_f1`."""
    words = _drop_words(answer)
    return float(any(words == _drop_words(spans[0]) for spans in references if len(spans) == 1))


def quac_f1(answer: str, references: Sequence[str]) -> float:
    """Computes the F1 of an answer by the rules of QuAC, in [0, 1].

    Texts are bags of words, as in `squad_f1`, but empty ones never match. With several references, the score is the
    mean over all but one of them, so that it can be compared with `quac_human_f1`.

    Args:
      answer: a text, or `CANNOTANSWER`.
      references: several texts, or `CANNOTANSWER` alone.
    """
    scores = [_quac_f1(answer, reference) for reference in references]
    if len(scores) == 1:
        return scores[0]
    return float(np.mean([max(scores[:i] + scores[i + 1 :]) for i in range(len(scores))]))


def quac_human_f1(references: Sequence[str]) -> float:
    """Computes the F1 of a reference against the others by the rules of QuAC, on average; 1 for a single one."""
    if len(references) == 1:
        return 1.0
    others = [[text for j, text in enumerate(references) if j != i] for i in range(len(references))]
    return float(np.mean([max(_quac_f1(text, other) for other in others[i]) for i, text in enumerate(references)]))


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """Builds `score(answer, references)`: the highest ROUGE-L F over all references, in [0, 1], without stemming.

    Raises:
      DataError: rouge-score is not installed.
    """
    scorer = require("rouge_score.rouge_scorer").RougeScorer(["rougeL"])

    def score(answer: str, references: Sequence[str]) -> float:
        return max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)

    return score


def bleu(answers: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Computes the corpus BLEU of sacrebleu and its standard error by resampling; see `bleu_counts`.

    Returns:
      BLEU from 0 to 100, and `bootstrap_error`.
    """
    counts, score = bleu_counts(answers, references)
    return score(counts.sum(axis=0)), bootstrap_error(counts, score, range(len(counts)))


def bleu_counts(answers: Sequence[str], references: Sequence[str]) -> tuple[np.ndarray, Callable[[np.ndarray], float]]:
    """Counts what corpus BLEU is computed from, with sacrebleu's tokenizer 13a.

    Args:
      answers: [n] translations.
      references: [n], one reference per answer.

    Returns:
      float64[n, 10]: for each answer, the correct n-grams and all n-grams for n = 1 to 4, its length and that of its
      reference; and `score(sums)`, which computes BLEU from 0 to 100 from the sums over a corpus.

    Raises:
      DataError: sacrebleu is not installed.
    """
    metric = require("sacrebleu.metrics").BLEU(effective_order=True)  # without it, scores of sentences print a warning
    sentences = [metric.sentence_score(answer, [ref]) for answer, ref in zip(answers, references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences], np.float64)

    def score(sums: np.ndarray) -> float:
        correct, total, (length, reference) = sums[:4].tolist(), sums[4:8].tolist(), sums[8:]
        return metric.compute_bleu(correct, total, int(length), int(reference), "exp").score

    return counts, score


def require(module: str) -> ModuleType:
    """Imports a module of the extra `tasks`.

    Raises:
      DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise DataError(f"expected the package {package}, found none; pip install 'instructjax[tasks]'") from None


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    shared = (collections.Counter(words) & collections.Counter(reference)).total()
    return 2 * shared / (len(words) + len(reference))


def _quac_f1(answer: str, reference: str) -> float:
    if CANNOTANSWER in (answer, reference):
        return float(answer == reference)
    words, right = squad_words(answer), squad_words(reference)
    return _f1(words, right) if words and right else 0.0


def _drop_words(text: str) -> list[str]:
    words: list[str] = []
    for token in re.split(" |-", text.lower()):
        bare = token if _is_number(token) else token.translate(_PUNCTUATION)
        bare = str(float(bare)) if _is_number(bare) else bare
        words.extend(_ARTICLES.sub(" ", bare).split())
    return words


def _drop_f1(words: set[str], reference: set[str]) -> float:
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & words:
        return 0.0
    shared = len(words & reference)
    precision = shared / len(words) if words else 1.0
    recall = shared / len(reference) if reference else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
