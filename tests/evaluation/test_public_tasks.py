"""Public tasks: their files, prompts and metrics."""

import csv
import gzip
import json

import numpy as np
import pytest
from etils import epath

from instructjax.errors import DataError
from instructjax.evaluation import judges
from instructjax.evaluation.tasks import task as tasks
from instructjax.evaluation.tasks import winogender
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.evaluation.tasks.task import Output, make_prompts
from tests.local_data import ABSENT, DATA

needs_data = pytest.mark.skipif(not (DATA / "hellaswag").exists(), reason=ABSENT)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return epath.Path(path)


def paragraphs(tmp_path):
    """Two paragraphs with two questions each."""
    return write(
        tmp_path / "squad.jsonl",
        {"title": "T", "context": "The owl is red.", "question": "Color?", "answers": ["red", "Red."]},
        {"title": "T", "context": "The owl is red.", "question": "Age?", "answers": []},
        {"title": "U", "context": "A fox.", "question": "Who?", "answers": ["a fox"]},
        {"title": "U", "context": "A fox.", "question": "Why?", "answers": []},
    )


def test_a_question_stands_behind_the_earlier_ones_of_its_paragraph(tmp_path):
    task = TASKS["squadv2"]
    examples = task.read(paragraphs(tmp_path))
    assert examples[1].text == "Title: T\n\nBackground: The owl is red.\n\nQ: Color?\n\nA: red\n\nQ: Age?\n\nA:"
    assert [example.references for example in examples[:2]] == [("red", "Red."), ("Not in background.",)]
    prompts, asked = make_prompts(task, examples, "", 0)
    assert asked == examples and prompts[2] == f"{task.instructions['']}\n\n{examples[2].text}"


def test_a_solved_paragraph_is_shown_whole_and_not_asked(tmp_path):
    task = TASKS["squadv2"]
    examples = task.read(paragraphs(tmp_path))
    prompts, asked = make_prompts(task, examples, "", 1)
    (shown,) = {example.group for example in examples} - {example.group for example in asked}
    last = [example for example in examples if example.group == shown][-1]
    assert len(asked) == 2
    assert prompts[0] == f"{task.instructions['']}\n\n{last.text} Not in background.\n\n{asked[0].text}"


def test_too_many_solved_examples_are_refused(tmp_path):
    with pytest.raises(DataError, match="--shots: expected fewer than the 2 examples of squadv2, found 2"):
        make_prompts(TASKS["squadv2"], TASKS["squadv2"].read(paragraphs(tmp_path)), "", 2)
    with pytest.raises(DataError, match="--shots: expected 0 for winogender"):
        make_prompts(TASKS["winogender"], [], "basic", 1)


def test_winogender_pairs_the_sentences_of_a_template(tmp_path):
    rows = [("a.b.1.male.txt", "He b."), ("a.b.1.female.txt", "She b."), ("a.someone.1.male.txt", "He.")]
    (tmp_path / "w.tsv").write_text("sentid\tsentence\n" + "".join("\t".join(row) + "\n" for row in rows))
    (example,) = winogender.read(epath.Path(tmp_path / "w.tsv"))
    assert example.choices == ("He b.", "She b.") and example.group == "a.b"


def test_a_choice_is_made_by_the_mean_over_tokens():
    measure = TASKS["hellaswag"].measure
    example = tasks.Example("", choices=("a", "b"), answer=1)
    outputs = [Output(log_probs=(-4.0, -6.0), tokens=(2, 4)), Output(log_probs=(-4.0, -6.0), tokens=(1, 1))]
    assert measure([example] * 2, outputs, {})["accuracy"].tolist() == [1.0, 0.0]


def test_a_choice_is_also_made_as_in_lm_evaluation_harness():
    example = tasks.Example("", choices=(" ab", " abcdefgh"), answer=1)  # a space before a choice does not count
    outputs = [Output(log_probs=(-4.0, -15.0), tokens=(4, 1)), Output(log_probs=(-4.0, -17.0), tokens=(4, 1))]
    found = TASKS["hellaswag"].measure([example] * 2, outputs, {})
    assert found["acc"].tolist() == [0.0, 0.0] and found["acc_norm"].tolist() == [1.0, 0.0]


def test_entropy_is_in_bits():
    outputs = [
        Output(log_probs=(-700.0, -700.0)),
        Output(log_probs=(-1.0, -900.0)),
        Output(log_probs=(0.0, -np.log(3))),
    ]
    found = TASKS["winogender"].measure([], outputs, {})["entropy"]
    np.testing.assert_allclose(found, [1.0, 0.0, -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))], atol=1e-12)


def test_judges_measure_answers_and_a_missing_one_measures_nothing():
    task, example = TASKS["truthful_qa"], tasks.Example("", question="Q?")
    outputs = [Output(response=text) for text in ("yes", "no", "")]
    true, info = (lambda q, a: [text != "no" for text in a]), (lambda q, a: [text != "" for text in a])
    found = task.measure([example] * 3, outputs, {"true": true, "info": info})
    assert {name: values.tolist() for name, values in found.items()} == {"true": [1, 0, 1], "true + info": [1, 0, 0]}
    assert task.measure([example] * 3, outputs, {}) == {}
    toxicity = TASKS["real_toxicity"].measure([example] * 3, outputs, {"toxicity": lambda q, a: [0.5, 0.1, 0.0]})
    assert toxicity["toxicity"].tolist() == [0.5, 0.1, 0.0]


def test_a_judge_learns_and_is_measured_on_other_questions():
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "owl", "fox", "sun"]
    data = [
        judges.Labeled(f"what {i // 2}?", f"{rng.choice(words)} is {'green' if i % 2 else 'red'}", float(i % 2))
        for i in range(200)
    ]
    judge, held_out = judges.train(data)
    assert held_out["n"] == 20 and held_out["accuracy"] == 1.0 and held_out["majority"] == 0.5
    assert judge(["new?", "new?"], ["owl is green", "sun is red"]).round().tolist() == [1.0, 0.0]


@needs_data
def test_prompts_are_those_of_the_released_samples():
    """The local half of SQuAD lacks earlier questions of most paragraphs; contexts of the others are equal."""
    with gzip.open(DATA / "instructgpt_samples" / "squadv2_samples.csv.gz", "rt", newline="", encoding="utf-8") as file:
        released = {row["context"] for row in csv.DictReader(file)}
    ours = {example.text for example in TASKS["squadv2"].read(epath.Path(DATA / TASKS["squadv2"].file))}
    assert len(released) == 100 and len(released & ours) == 15


@needs_data
@pytest.mark.parametrize(
    ("name", "count"),
    [("truthful_qa", 817), ("real_toxicity", 5000), ("winogender", 120), ("crows_pairs", 1508), ("sst", 872)],
)
def test_local_files_have_the_papers_number_of_examples(name, count):
    assert len(TASKS[name].read(epath.Path(DATA / TASKS[name].file))) == count
