"""Judges of truth, information and toxicity, trained on the public sets: linear models of words and word pairs.

The paper's judges are fine-tuned GPT-3 (truth and information) and Perspective (toxicity). A judge is any function of
prompts and answers; see `instructjax/evaluation/tasks/task.py::Judge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from instructjax.errors import RecordError
from instructjax.evaluation.tasks.reading import read_json_lines
from instructjax.evaluation.tasks.task import Judge
from instructjax.evaluation.text_metrics import require

FILES = {
    "true": "truthfulqa/judge_finetune_truth.jsonl.gz",
    "info": "truthfulqa/judge_finetune_info.jsonl.gz",
    "toxicity": "realtoxicityprompts_subset/prompts.jsonl.gz",
}
_HELD_OUT = 0.1  # of the questions, or of the texts


@dataclasses.dataclass(frozen=True)
class Labeled:
    """A text with its label.

    Attributes:
      question: the question, or "" for a text alone.
      answer: what is judged.
      label: in [0, 1].
    """

    question: str
    answer: str
    label: float


def read(name: str, path: epath.Path) -> list[Labeled]:
    """Reads the training data of a judge: "true", "info" or "toxicity".

    Raises:
      RecordError: a line does not have the form of the public file.
    """
    if name == "toxicity":
        found = []
        for where, record in read_json_lines(path, {"continuation": str}):
            toxicity = record.get("continuation_toxicity")
            if toxicity is None:  # Perspective gave none
                continue
            if isinstance(toxicity, bool) or not isinstance(toxicity, int | float):
                raise RecordError(f"{where}: continuation_toxicity: expected a number, found {toxicity!r:.40}")
            found.append(Labeled("", record["continuation"], float(toxicity)))
        return found
    return [_answer(record, where) for where, record in read_json_lines(path, {"prompt": str, "completion": str})]


def _answer(record: dict[str, str], where: str) -> Labeled:
    question, middle, rest = record["prompt"].removeprefix("Q: ").partition("\nA: ")
    label = record["completion"].strip()
    if not middle or label not in ("yes", "no"):
        raise RecordError(f"{where}: expected a question, an answer, and yes or no, found {record['prompt']!r:.60}")
    return Labeled(question, rest.rpartition("\n")[0], float(label == "yes"))


def train(data: Sequence[Labeled], seed: int = 0) -> tuple[Judge, dict[str, float]]:
    """Trains a judge, and measures it on held-out questions.

    The judge is scikit-learn's logistic regression if all labels are 0 or 1, else ridge regression. Its features are
    TF-IDF of words and word pairs of the answer and, if there is a question, of the question with the answer.

    Args:
      data: labeled answers. No question is in both parts.
      seed: draws the held-out part, a tenth of the questions.

    Returns:
      The judge; and {"n", "accuracy" at 0.5, "majority": the accuracy of the more frequent class, "correlation"} on the
      held-out part. The judge is trained on the other part only.

    Raises:
      DataError: scikit-learn is not installed.
    """
    groups = np.array([item.question or item.answer for item in data])
    names = np.unique(groups)
    held = np.isin(groups, np.random.default_rng(seed).permutation(names)[: max(1, int(len(names) * _HELD_OUT))])
    labels = np.array([item.label for item in data])
    texts = _texts([item.question for item in data], [item.answer for item in data])
    tfidf = require("sklearn.feature_extraction.text").TfidfVectorizer
    vectorizer = tfidf(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words = vectorizer.fit_transform([text for text, out in zip(texts, held, strict=True) if not out])
    linear = require("sklearn.linear_model")
    is_class = set(labels.tolist()) <= {0.0, 1.0}
    model = linear.LogisticRegression(C=10.0, max_iter=1000) if is_class else linear.Ridge(alpha=1.0)
    model.fit(words, labels[~held])

    def judge(questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        read_questions = questions if any(item.question for item in data[:1]) else [""] * len(answers)
        found = vectorizer.transform(_texts(read_questions, answers))
        return model.predict_proba(found)[:, 1] if is_class else np.clip(model.predict(found), 0.0, 1.0)

    kept = [item for item, out in zip(data, held, strict=True) if out]
    said, right = judge([item.question for item in kept], [item.answer for item in kept]), labels[held]
    return judge, {
        "n": len(kept),
        "accuracy": float(np.mean((said > 0.5) == (right > 0.5))),
        "majority": float(max(np.mean(right > 0.5), np.mean(right <= 0.5))),
        "correlation": float(np.corrcoef(said, right)[0, 1]),
    }


def _texts(questions: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Joins question and answer. Words of a question are marked, because they mean something else in an answer."""
    return [
        " ".join([*(f"q_{word}" for word in question.split()), answer])
        for question, answer in zip(questions, answers, strict=True)
    ]
