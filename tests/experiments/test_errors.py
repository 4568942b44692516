"""User errors are reported before training; tests/wrong_input has all of them, with their messages."""

import json
import os
import pathlib
import subprocess
import sys

import flag_errors
import pytest
from absl import flags

from instructjax.errors import CheckpointError, DataError, InputError, RecordError
from instructjax.stages import ppo, pretrain, reward, selection
from instructjax.stages.run import Run
from tests.recipes import RECORDS, recipe, save_stage

ROOT = pathlib.Path(__file__).resolve().parents[2]


def refused(kind, function, *arguments):
    """Returns the one-line message of the error that a call raises."""
    with pytest.raises(kind) as error:
        function(*arguments)
    assert isinstance(error.value, InputError)
    message = str(error.value)
    assert message and "\n" not in message
    return message


def trained(workdir):
    return [path.parent.name for path in workdir.glob("*/checkpoints")]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("text", '{"text": "a fox"', "expected one JSON object, found"),
        ("text", '{"txt": "a fox"}', "text: expected in a Text, found only txt"),
        ("demonstrations", '{"prompt": "a", "response": ""}', "response: expected text, found an empty one"),
        ("prompts", '{"prompt": 3}', "prompt: expected text, found 3"),
        (
            "rankings",
            '{"prompt": "a", "responses": [], "scores": []}',
            "scores: expected at least one preference, found all 0",
        ),
        (
            "rankings",
            '{"prompt": "a", "responses": ["b"], "scores": [1]}',
            "scores: expected at least one preference, found all 1",
        ),
        (
            "rankings",
            '{"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]}',
            "scores: expected at least one preference, found all 2 answers tied",
        ),
    ],
    ids=["malformed", "no text", "empty response", "number", "no answers", "one answer", "all tied"],
)
def test_a_wrong_line_is_named(tmp_path, name, line, message):
    config = recipe(tmp_path, **{name: [json.dumps(RECORDS[name][0]), line]})
    found = refused(RecordError, pretrain.run, Run(config, tmp_path / "run"))
    assert found.startswith(f"{tmp_path}/{name}.jsonl:2: {message}")
    assert not trained(tmp_path / "run")


@pytest.mark.parametrize("name", ["demonstrations", "prompts", "rankings"])
def test_a_prompt_that_is_too_long_is_named(tmp_path, name):
    splits = ("train", "validation", "test")
    lines = [json.dumps({**record, "split": splits[i % 3]}) for i, record in enumerate(RECORDS[name])]
    lines[4] = json.dumps({**RECORDS[name][4], "prompt": "a fox " * 40, "split": "train"})
    message = refused(DataError, pretrain.run, Run(recipe(tmp_path, **{name: lines}), tmp_path / "run"))
    assert message.startswith(
        f"{tmp_path}/{name}.jsonl:5: prompt: expected at most 16 tokens (data.max_prompt), found "
    )
    assert not trained(tmp_path / "run")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Returns (config, workdir) with prepared data and a pretraining that looks finished."""
    folder = tmp_path_factory.mktemp("pretrained")
    config, workdir = recipe(folder), folder / "run"
    layout = Run(config, workdir).layout
    save_stage(config, workdir, "pretrain", layout.tokenizer)
    return config, workdir


@pytest.mark.parametrize(
    ("stage", "missing"),
    [(reward.run, "sft"), (ppo.run, "ppo_init"), (ppo.run_with_text, "ppo_init"), (selection.select, "reward")],
    ids=["reward", "ppo", "ppo_ptx", "select"],
)
def test_a_missing_stage_is_named(pretrained, stage, missing):
    config, workdir = pretrained
    message = refused(CheckpointError, stage, Run(config, workdir))
    assert message == f"{workdir}/{missing}: expected the finished stage {missing}, found none"
    assert trained(workdir) == ["pretrain"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "pretrain.py",
            ["--config.pretrain.stepps=1"],
            "pretrain.stepps: expected a key that the recipe declares, found no such key; did you mean pretrain.steps?",
        ),
        (
            "sample.py",
            ["--prompt=a"],
            "{workdir}/ppo_ptx: expected a checkpoint of the stage ppo_ptx, found none",
        ),
    ],
    ids=["unknown key", "no stage"],
)
def test_a_script_prints_the_error_as_one_line_and_exits_with_2(tmp_path, script, flags, message):
    workdir = tmp_path / "run"
    finished = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / script), f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: " + message.format(workdir=workdir))
    assert finished.stderr.count("\n") == 1
    assert not finished.stdout
    assert not workdir.exists()


def test_a_wrong_value_is_quoted_whole():
    error = flags.Error("flag --config.sft.batch_size=a: b: invalid literal for int() with base 10: 'a: b'")
    found = flag_errors.wrong_value(error, ["sft.py", "--config.sft.batch_size=a: b", "--workdir=runs/mine"])
    assert found == "sft.batch_size: expected an integer, at least 1, found 'a: b'"
