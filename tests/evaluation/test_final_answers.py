"""The final answers of solutions, by the rule of GSM8K's own evaluation."""

import pytest

from instructjax.evaluation.final_answers import exact_match, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("#### -3.5", "-3.5"),
        ("#### 7 #### 8", "7"),  # the first one counts
        ("#### 18.", "18."),  # the release compares texts, not numbers
        ("#### $18", None),
        ("####18", None),
        ("the answer is 18", None),
        ("", None),
    ],
)
def test_the_answer_is_the_first_number_behind_the_mark(text, answer):
    assert final_answer(text) == answer


def test_only_right_answers_are_rewarded():
    record = {"answer": "16 - 3 - 4 = 9\n#### 1,018"}
    responses = ["#### 1018", "9 eggs\n#### 1,018", "#### 1018.0", "1018", "#### 18", ""]
    assert exact_match([""] * 6, responses, [record] * 6) == [1, 1, 0, 0, 0, 0]


def test_a_record_without_a_final_answer_is_named():
    with pytest.raises(ValueError, match="^answer: expected a solution with \"#### NUMBER\", found '72'$"):
        exact_match([""], ["#### 72"], [{"answer": "72"}])
