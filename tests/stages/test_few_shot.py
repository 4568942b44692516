"""The few-shot prefix: its length and its examples."""

import json

import numpy as np

from instructjax.models.transformer import LanguageModel, ScalarModel
from instructjax.records import Prompt
from instructjax.stages import few_shot, rewards
from instructjax.stages.run import Run, policy_config
from instructjax.stages.trained import Trained
from tests import fakes
from tests.recipes import RECORDS, changed, recipe


def models(config, layout):
    shape = policy_config(config, layout.tokenizer.vocab_size)
    return [Trained(kind(shape), fakes.params(kind(shape)), layout.tokenizer) for kind in (LanguageModel, ScalarModel)]


def choose_prefix(run):
    policy, reward = models(run.config, run.layout)
    return few_shot.choose_prefix(run, policy, rewards.of_model(run, reward))


def demonstrations(response):
    """Returns demonstrations, half of them with this response."""
    records = [
        {**record, "response": response} if i % 2 else record for i, record in enumerate(RECORDS["demonstrations"])
    ]
    return [json.dumps({**record, "split": ("train", "validation")[i // 2 % 2]}) for i, record in enumerate(records)]


def test_without_room_there_is_no_prefix(tmp_path, capsys):
    config = recipe(tmp_path)  # max_length 32: four tokens in addition to prompt and response
    run = Run(config, tmp_path / "run")
    assert choose_prefix(run) is None
    assert "gpt_prompted: left out; model.max_length: expected room for 2 examples" in capsys.readouterr().out


def test_examples_are_of_one_line(tmp_path):
    config = recipe(tmp_path, demonstrations=demonstrations("a\nb"))
    config = changed(config, model__max_length=64, evaluate__few_shot_candidates=2, evaluate__batch_size=4)
    run = Run(config, tmp_path / "run")
    prefix = choose_prefix(run)
    lines = prefix.split("\n")
    assert len(lines) == 5 and lines[-1] == ""  # two of prompt, separator, response, stop
    assert {(lines[0], lines[1]), (lines[2], lines[3])} <= {
        (record["prompt"], record["response"]) for record in RECORDS["demonstrations"]
    }


def test_without_an_example_of_one_line_there_is_no_prefix(tmp_path, capsys):
    lines = [json.dumps({"prompt": "a", "response": "b\nc", "split": ("train", "validation")[i % 2]}) for i in range(4)]
    config = recipe(tmp_path, demonstrations=lines)
    run = Run(config, tmp_path / "run")
    assert choose_prefix(run) is None
    assert "expected a demonstration whose response is one line, found none" in capsys.readouterr().out


def test_an_answer_that_is_too_long_is_truncated_before_scoring(tmp_path):
    config = changed(recipe(tmp_path), evaluate__batch_size=2)
    run = Run(config, tmp_path / "run")
    layout = run.layout
    _, reward = models(config, layout)
    long = "xyzzy " * 20
    cut = layout.truncate(long)
    assert long.startswith(cut) and len(layout.tokenizer.encode(cut)) == layout.max_response - 1
    prompts = [Prompt(prompt="the fox"), Prompt(prompt="an owl")]
    found = rewards.of_model(run, reward).of_texts(prompts, [[long, cut, "owl"]] * 2)
    assert found.shape == (2, 3) and np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-5)
    assert (abs(found[:, 0] - found[:, 2]) > 1e-3).all()
