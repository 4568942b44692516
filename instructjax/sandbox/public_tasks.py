"""Examples of public tasks in the sandbox: each prompt in several wordings, with the shortest right answer.

FLAN and T0 (appendix C.5) were fine-tuned on collections of public data sets: questions, classification, extraction.
Their answers are short, and the prompts are not what users ask for.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from instructjax.records import Demonstration
from instructjax.sandbox.parts import answer_parts
from instructjax.sandbox.tasks import parse_prompt, write_prompt

FLAN = ("open_qa", "closed_qa", "classification", "extract")
T0 = (*FLAN, "rewrite", "other")
WORDINGS = ("{}", "tell me : {}", "{} be brief .")


def write_examples(rng: np.random.Generator, use_cases: Collection[str], count: int) -> list[Demonstration]:
    """Writes examples of the given use cases, which are as frequent among each other as in prompts of users.

    Args:
      rng: source of randomness.
      use_cases: such as `FLAN`; those whose answers are short.
      count: number of examples.
    """
    examples: list[Demonstration] = []
    while len(examples) < count:
        prompt = write_prompt(rng)
        use_case = parse_prompt(prompt).use_case
        if use_case in use_cases:
            worded = WORDINGS[rng.integers(len(WORDINGS))].format(prompt)
            answer = shortest_answer(prompt)
            examples.append(Demonstration(prompt=worded, response=answer, split="train", use_case=use_case))
    return examples


def shortest_answer(prompt: str) -> str:
    """Returns the right answer with the fewest words, without a full stop: a label, as data sets have them.

    Args:
      prompt: of a use case whose answers are short.
    """
    sentences = []
    for part in answer_parts(prompt):
        best = max(truth for truth, _ in part.values())
        right = [sentence for sentence, (truth, _) in part.items() if truth == best]
        sentences.append(min(right, key=lambda sentence: (len(sentence.split()), sentence)))
    return " . ".join(sentences)
