"""GSM8K and sums as sources of records: splits, fields, and the share of right answers."""

import json

import numpy as np
import pytest
from etils import epath

from configs import arithmetic, gsm8k
from instructjax import records
from instructjax.errors import DataError
from instructjax.evaluation.final_answers import exact_match, final_answer
from instructjax.records import Demonstration, Prompt, Text
from instructjax.sources.registry import make_source
from instructjax.sources.source import Answers
from tests.local_data import ABSENT, DATA
from tests.recipes import changed

LOCAL = DATA / "gsm8k"
PROBLEMS = [
    {"question": f"How many legs have {n} cats?", "answer": f"4 * {n} = {4 * n}\n#### {4 * n}"} for n in range(9)
]


def written(config, folder):
    """Returns the prompts and demonstrations that a recipe's source writes."""
    make_source(config).write(epath.Path(folder))
    kinds = {"prompts": Prompt, "demonstrations": Demonstration}
    return [records.read(folder / f"{name}.jsonl", kind) for name, kind in kinds.items()]


def release(tmp_path, problems=PROBLEMS):
    """Writes problems as a release of GSM8K, and returns a recipe that reads it."""
    for split, part in (("train", problems[2:]), ("test", problems[:2])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in part))
    return changed(gsm8k.get_config(), gsm8k__directory=str(tmp_path), data__validation=0.5)


def test_problems_keep_the_splits_of_the_release_and_their_solutions(tmp_path):
    prompts, demonstrations = written(release(tmp_path), tmp_path)
    assert [record.prompt.partition("?")[0] for record in prompts if record.split == "test"] == [
        problem["question"].partition("?")[0] for problem in PROBLEMS[:2]
    ]
    assert {record.split for record in prompts[:7]} == {"train", "validation"}
    asked = {problem["question"]: problem["answer"] for problem in PROBLEMS}
    for record in prompts:
        question, instruction = record.prompt[: record.prompt.index("?") + 1], record.prompt.partition("? ")[2]
        assert record.extra == {"answer": asked[question]} and instruction.endswith('after "####".')
    shown = [(record.prompt, record.response, record.split) for record in demonstrations]
    assert shown == [(record.prompt, record.extra["answer"], record.split) for record in prompts[:7]]


def test_the_instruction_may_be_empty(tmp_path):
    prompts, _ = written(changed(release(tmp_path), gsm8k__instruction=""), tmp_path)
    assert {record.prompt for record in prompts} == {problem["question"] for problem in PROBLEMS}


def test_a_problem_without_a_final_answer_is_named(tmp_path):
    config = release(tmp_path, [*PROBLEMS[:4], {"question": "Why?", "answer": "because"}])
    with pytest.raises(DataError, match=r'train.jsonl:3: answer: expected a solution with "#### NUMBER", found \'bec'):
        written(config, tmp_path)


@pytest.mark.skipif(not LOCAL.is_dir(), reason=ABSENT)
def test_the_release_has_7473_and_1319_problems_that_its_own_solutions_solve(tmp_path):
    prompts, demonstrations = written(changed(gsm8k.get_config(), gsm8k__directory=str(LOCAL)), tmp_path)
    splits = [record.split for record in prompts]
    assert splits.count("test") == 1319 and len(demonstrations) == len(splits) - 1319 == 7473
    assert 0.04 < splits.count("validation") / 7473 < 0.06
    solutions = [record.extra["answer"] for record in prompts]
    assert sum(exact_match(solutions, solutions, [record.extra for record in prompts])) == len(prompts)
    assert {final_answer(record.response) for record in demonstrations[:2]} == {"72", "10"}


def test_each_sum_is_in_one_split_and_a_share_of_the_demonstrations_is_wrong(tmp_path):
    config = arithmetic.get_config()
    prompts, demonstrations = written(config, tmp_path)
    assert len({record.prompt for record in prompts}) == len(prompts) == 1_000
    for record in prompts:
        a, b = (int(number) for number in record.prompt.removesuffix(" =").split(" + "))
        assert record.extra["answer"] == f"#### {a + b}"
    right = {record.prompt: (record.split, record.extra["answer"]) for record in prompts}
    assert len(demonstrations) == config.arithmetic.demonstrations
    assert {record.split for record in demonstrations} == {"train", "validation"}
    assert all(right[record.prompt][0] == record.split for record in demonstrations)
    wrong = np.mean([right[record.prompt][1] != record.response for record in demonstrations])
    assert wrong == pytest.approx(config.arithmetic.wrong, abs=0.02)
    texts = records.read(tmp_path / "text.jsonl", Text)
    assert {text.split for text in texts} == {"train", "validation"}
    lines = [line for text in texts for line in text.text.split("\n")]
    shown = [line for record in demonstrations if record.split == "train" for line in (record.prompt, record.response)]
    assert lines == shown
    again = tmp_path / "again"
    again.mkdir()
    assert written(config, again) == [prompts, demonstrations]
    assert written(changed(config, seed=1), again) != [prompts, demonstrations]


def test_the_share_of_right_answers_of_each_model_is_reported():
    prompts = [Prompt(prompt=f"{n} + 1 =", extra={"answer": f"#### {n + 1}"}) for n in range(4)]
    texts = {"sft": ["#### 1", "#### 2", "#### 9", ""], "ppo": ["#### 1", "#### 2", "#### 3", "#### 4"]}
    answers = Answers([p.prompt for p in prompts], texts, [], lambda *_: prompts, lambda _: [], epath.Path("/nowhere"))
    found = make_source(arithmetic.get_config()).judge(answers).results["exact_match"]
    assert (found["sft"]["mean"], found["ppo"]["mean"], found["sft"]["n"]) == (0.5, 1.0, 4)
