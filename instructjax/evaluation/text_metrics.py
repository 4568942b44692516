"""Scores texts against references by the public tasks' own rules (appendix D).

BLEU and ROUGE are those of sacrebleu and rouge-score, in the extra `tasks`. The rules of SQuAD and DROP exist only as
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

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_f1(answer: str, references: Sequence[str]) -> float:
    """Computes the F1 of an answer by the rules of SQuAD 2.0, in [0, 1]: the highest over all references.

    Texts are bags of words in lower case, without punctuation and articles. An empty text means "no answer": it
    matches only another empty text.
    """
    return max(_f1(_squad_words(answer), _squad_words(reference)) for reference in references)


def squad_exact(answer: str, references: Sequence[str]) -> float:
    """Returns 1 if an answer equals a reference by the rules of SQuAD 2.0, else 0; see `squad_f1`."""
    return float(any(_squad_words(answer) == _squad_words(reference) for reference in references))


def drop_f1(answer: str, references: Sequence[str]) -> float:
    """Computes the F1 of an answer by the rules of DROP, in [0, 1]: the highest over all references.

    Words are compared as sets, and numbers by value. If a reference has numbers, an answer with none of them scores 0.
    As in DROP's script, a score is rounded to two digits. Each text is one span; several are not split.
    """
    return max(_drop_f1(_drop_words(answer), _drop_words(reference)) for reference in references)


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """Builds `score(answer, references)`: the highest ROUGE-L F over all references, in [0, 1], without stemming.

    Raises:
      DataError: rouge-score is not installed.
    """
    scorer = require("rouge_score.rouge_scorer").RougeScorer(["rougeL"])

    def score(answer: str, references: Sequence[str]) -> float:
        return max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)

    return score


def bleu(answers: Sequence[str], references: Sequence[str], bootstraps: int = 500) -> tuple[float, float]:
    """Computes the corpus BLEU of sacrebleu (tokenizer 13a) and its standard error by resampling.

    Args:
      answers: [n] translations.
      references: [n], one reference per answer.
      bootstraps: the number of corpora of n answers to draw with replacement, with a fixed seed.

    Returns:
      BLEU from 0 to 100, and the standard deviation of the resampled corpora's BLEU.

    Raises:
      DataError: sacrebleu is not installed.
    """
    metric = require("sacrebleu.metrics").BLEU(effective_order=True)  # without it, scores of sentences print a warning
    sentences = [metric.sentence_score(answer, [ref]) for answer, ref in zip(answers, references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences])

    def score(summed: np.ndarray) -> float:
        correct, total, (length, reference) = summed[:4], summed[4:8], summed[8:]
        return metric.compute_bleu(correct.tolist(), total.tolist(), int(length), int(reference), "exp").score

    rng = np.random.default_rng(0)
    draws = rng.integers(len(answers), size=(bootstraps, len(answers)))
    return score(counts.sum(axis=0)), float(np.std([score(counts[draw].sum(axis=0)) for draw in draws], ddof=1))


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


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    shared = (collections.Counter(words) & collections.Counter(reference)).total()
    return 2 * shared / (len(words) + len(reference))


def _drop_words(text: str) -> set[str]:
    words: set[str] = set()
    for token in re.split(" |-", text.lower()):
        bare = token if _is_number(token) else token.translate(_PUNCTUATION)
        bare = str(float(bare)) if _is_number(bare) else bare
        words.update(_ARTICLES.sub(" ", bare).split())
    return words


def _drop_f1(words: set[str], reference: set[str]) -> float:
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & words:
        return 0.0
    shared = len(words & reference)
    precision = shared / len(words) if words else 1.0
    recall = shared / len(reference) if reference else 1.0
    return round(2 * precision * recall / (precision + recall), 2) if precision + recall else 0.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
