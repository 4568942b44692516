"""Compares the final answers of texts, which stand behind "####" as in GSM8K (Cobbe et al. 2021, arXiv 2110.14168).

The rule is that of the release's own evaluation (openai/grade-school-math, grade_school_math/dataset.py): the first
number behind "#### ", without commas, must be equal as text. "18" and "18.0" differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def final_answer(text: str) -> str | None:
    """Returns the first number behind "#### ", without commas; None if there is none."""
    found = _ANSWER.search(text)
    return found[1].replace(",", "") if found else None


def exact_match(prompts: Sequence[str], responses: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns 1 for each response that ends in the right final answer, and 0 for others; for `ppo.reward_function`.

    Args:
      prompts: not read.
      responses: texts.
      records: fields of each prompt's record; "answer" is a solution that ends in the right answer.

    Raises:
      ValueError: a record's "answer" has no final answer.
    """
    del prompts
    scores = []
    for response, record in zip(responses, records, strict=True):
        right = final_answer(record["answer"])
        if right is None:
            raise ValueError(f'answer: expected a solution with "#### NUMBER", found {record["answer"]!r:.80}')
        scores.append(float(final_answer(response) == right))
    return scores
