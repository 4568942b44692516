"""Simulated labelers judge a file of answers, and win_rates.py compares the models in it."""

import json

import numpy as np
import pytest

from instructjax.evaluation import comparison
from instructjax.sandbox.answers import write_answer
from instructjax.sandbox.tasks import write_prompt
from tests import scripts

SANDBOX = f"--config={scripts.SCRIPTS.parent}/configs/sandbox.py:smoke"


def score(tmp_path, lines, config=SANDBOX):
    """Returns the printed line, and the file of judged answers."""
    answers, judged = tmp_path / "answers.jsonl", tmp_path / "judged.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [config, f"--workdir={tmp_path / 'none'}", f"--answers={answers}", f"--output={judged}", "--by=labelers"]
    return scripts.run("score.py", *flags), judged


def test_good_answers_win(tmp_path):
    rng = np.random.default_rng(0)
    prompts = [write_prompt(rng) for _ in range(40)]
    lines = [
        {"prompt": prompt, "responses": [write_answer(prompt, rng), "I do not know."], "models": ["good", "bad"]}
        for prompt in prompts
    ]
    printed, path = score(tmp_path, lines)
    assert "120 judgments of the answers to 40 prompts" in printed
    judged = comparison.read(path)
    assert [one.prompt for one in judged[::3]] == prompts
    assert all(len({one.labeler for one in judged[i : i + 3]}) == 3 for i in range(0, 120, 3))
    assert comparison.compare(judged, "bad")["good"]["win_rate"]["mean"] > 0.9
    assert score(tmp_path, lines)[1].read_text() == path.read_text()


def test_another_world_has_no_labelers(tmp_path):
    line = {"prompt": "Say it.", "responses": ["a", "b"], "models": ["x", "y"]}
    with pytest.raises(scripts.Left, match="--by=labelers: expected a recipe of the sandbox, found another"):
        score(tmp_path, [line], config=f"--config={scripts.SCRIPTS.parent}/configs/own.py")
    with pytest.raises(scripts.Left, match="expected a prompt of the sandbox's world, found 'Say it.'"):
        score(tmp_path, [line])
