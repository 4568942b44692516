"""Examples of public tasks in the sandbox."""

import numpy as np
import pytest

from instructjax.sandbox import public_tasks


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("what colour is the fox ?", "red"),
        ("does the fox eat fish ?", "no"),
        ("true or false : the fox eats plums .", "true"),
        ("happy or sad : kim lost the hat .", "sad"),
        ("find the colour : kim saw a gold bell .", "gold"),
        ("what is two and three ?", "five"),
        ("put in the past : the fox eats nuts .", "the fox ate nuts"),
        ("kim has a red hat . tom has a gold bell . who has the bell ?", "tom"),
    ],
)
def test_the_shortest_right_answer(prompt, answer):
    assert public_tasks.shortest_answer(prompt) == answer


def test_examples_have_the_use_cases_and_several_wordings():
    examples = public_tasks.write_examples(np.random.default_rng(0), public_tasks.FLAN, 200)
    assert len(examples) == 200
    assert {one.use_case for one in examples} == set(public_tasks.FLAN)
    assert any(one.prompt.startswith("tell me : ") for one in examples)
    assert any(one.prompt.endswith("? be brief .") for one in examples)
    assert all(one.response and one.split == "train" for one in examples)
    assert max(len(one.prompt.split()) for one in examples) < 24  # with the separator, they fit into data.max_prompt
    assert examples == public_tasks.write_examples(np.random.default_rng(0), public_tasks.FLAN, 200)
