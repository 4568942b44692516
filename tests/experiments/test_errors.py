"""What a user can get wrong: one line that names the place, before anything is trained."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from instructjax.data.tokenizer import Tokenizer
from instructjax.errors import CheckpointError, ConfigError, DataError, InputError, RecordError, TokenizerError
from instructjax.stages import evaluate, ppo, prepare, pretrain, reward, sft
from instructjax.training import checkpoint
from tests.tiny_recipes import RECORDS, changed, recipe, save_stage

ROOT = pathlib.Path(__file__).resolve().parents[2]


def refused(kind, function, *arguments):
    """The one-line message of the error that a call ends with."""
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
        ("demonstrations", '{"prompt": "a", "response": ""}', "response: expected text, found ''"),
        ("prompts", '{"prompt": 3}', "prompt: expected text, found 3"),
        ("rankings", '{"prompt": "a", "responses": [], "scores": []}', "responses: expected 2 to 9 answers, found 0"),
        (
            "rankings",
            '{"prompt": "a", "responses": ["b"], "scores": [1]}',
            "responses: expected 2 to 9 answers, found 1",
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
    found = refused(RecordError, pretrain.run, config, tmp_path / "run")
    assert found.startswith(f"{tmp_path}/{name}.jsonl:2: {message}")
    assert not trained(tmp_path / "run")


def test_a_missing_file_is_named(tmp_path):
    config = recipe(tmp_path)
    with config.unlocked():
        config.files.rankings = str(tmp_path / "nowhere.jsonl")
    message = refused(RecordError, pretrain.run, config, tmp_path / "run")
    assert message == f"{tmp_path}/nowhere.jsonl: expected a file of Ranking records, found no such file"
    with config.unlocked():
        config.files.demonstrations = ""
    message = refused(ConfigError, pretrain.run, config, tmp_path / "run")
    assert message == "files.demonstrations: expected a file of Demonstration records, found none"


def test_a_recipe_has_one_source_of_records(tmp_path):
    config = recipe(tmp_path).unlock()
    config.sandbox = {}
    message = refused(ConfigError, prepare.run, config, tmp_path / "run")
    assert message == "expected one of the sections files, sandbox, e2e, found files and sandbox"


@pytest.mark.parametrize("name", ["demonstrations", "prompts", "rankings"])
def test_a_prompt_that_is_too_long_is_named(tmp_path, name):
    splits = ("train", "validation", "test")
    lines = [json.dumps({**record, "split": splits[i % 3]}) for i, record in enumerate(RECORDS[name])]
    lines[4] = json.dumps({**RECORDS[name][4], "prompt": "a fox " * 40, "split": "train"})
    message = refused(DataError, pretrain.run, recipe(tmp_path, **{name: lines}), tmp_path / "run")
    assert message.startswith(
        f"{tmp_path}/{name}.jsonl:5: prompt: expected at most 16 tokens (data.max_prompt), found "
    )
    assert not trained(tmp_path / "run")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(config, workdir): data are prepared, and pretraining looks finished."""
    folder = tmp_path_factory.mktemp("pretrained")
    config, workdir = recipe(folder), folder / "run"
    layout = prepare.run(config, workdir)
    save_stage(config, workdir, "pretrain", layout.tokenizer)
    return config, workdir


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            pretrain.run,
            {"model__max_length": 20},
            "model.max_length: expected at least data.max_prompt + data.max_response = 28 tokens, found 20",
        ),
        (
            pretrain.run,
            {"pretrain__length": 64},
            "pretrain.length: expected at most model.max_length (32), found 64",
        ),
        (pretrain.run, {"model__d_ff": 0}, "model.d_ff: expected an integer, at least 1, found 0"),
        (pretrain.run, {"pretrain__batch_size": 6}, "pretrain.batch_size: expected a multiple of 4 "),
        (sft.run, {"sft__microbatches": 3}, "sft.batch_size: expected a multiple of 24 (8 devices x 3 parts)"),
        (pretrain.run, {"log__every": 100}, "log.every: expected 1 to 30 steps, found 100"),
        (sft.run, {"parallel__mode": "xmap"}, "parallel.mode: expected one of jit, pmap, found 'xmap'"),
        (
            ppo.run_ppo,
            {"ppo__batch_size": 12},
            "ppo.batch_size: expected a multiple of ppo.minibatch_size (8), found 12",
        ),
    ],
)
def test_values_that_do_not_fit_are_named(pretrained, stage, changes, message):
    config, workdir = pretrained
    before = trained(workdir)
    assert refused(ConfigError, stage, changed(config, **changes), workdir).startswith(message)
    assert trained(workdir) == before


def test_a_checkpoint_of_another_size_is_refused(pretrained):
    config, workdir = pretrained
    message = refused(CheckpointError, sft.run, changed(config, model__d_model=16), workdir)
    assert message.startswith(f"{workdir}/pretrain/checkpoints/1: params/")
    assert "expected float32[" in message and "found float32[" in message
    assert trained(workdir) == ["pretrain"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_heads": 2, "model__d_head": 4}, "model.num_heads: expected 2, found a model with 1"),
        ({"model__local_window": 4}, "model.local_window: expected 4, found a model with None"),
    ],
)
def test_a_checkpoint_of_the_same_shapes_but_another_model_is_refused(pretrained, changes, message):
    config, workdir = pretrained
    assert refused(CheckpointError, sft.run, changed(config, **changes), workdir) == (
        f"{workdir}/pretrain/checkpoints: {message}"
    )


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(pretrained, tmp_path):
    config, workdir = pretrained
    other = Tokenizer.train(["some other words of an other text"] * 9, 290)
    other.save(tmp_path / "other.model")
    start = workdir / "pretrain" / "checkpoints"
    config = changed(config, tokenizer__path=str(tmp_path / "other.model"), sft__init_from=str(start))
    message = refused(TokenizerError, sft.run, config, tmp_path / "run")
    found = checkpoint.read_meta(start)["fingerprint"]
    assert message == f"{start}: expected a checkpoint with tokenizer {other.fingerprint}, found {found}"
    assert not trained(tmp_path / "run")


@pytest.mark.parametrize(
    ("stage", "missing"),
    [(reward.run, "sft"), (ppo.run_ppo, "ppo_init"), (ppo.run_ppo_ptx, "ppo_init"), (sft.select, "reward")],
    ids=["reward", "ppo", "ppo_ptx", "select"],
)
def test_a_missing_stage_is_named(pretrained, stage, missing):
    config, workdir = pretrained
    message = refused(CheckpointError, stage, config, workdir)
    assert message == f"{workdir}/{missing}: expected the finished stage {missing}, found none"
    assert trained(workdir) == ["pretrain"]


def test_an_evaluation_wants_the_choice_among_sft_checkpoints(pretrained):
    config, workdir = pretrained
    message = refused(CheckpointError, evaluate.run, config, workdir, "name")
    assert message == f"{workdir}/sft/selected.json: expected the choice among the checkpoints of sft, found none"


def test_an_unfinished_stage_is_none(pretrained, tmp_path):
    config, _ = pretrained
    layout = prepare.run(config, tmp_path)
    save_stage(config, tmp_path, "pretrain", layout.tokenizer)
    (tmp_path / "pretrain" / "summary.json").unlink()
    message = refused(CheckpointError, sft.run, config, tmp_path)
    assert message == f"{tmp_path}/pretrain: expected the finished stage pretrain, found an unfinished one"


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (
            "pretrain.py",
            ["--config.pretrain.stepps=1"],
            "--config: expected keys that the recipe declares, found 'stepps' Did you mean \"steps\" instead of",
        ),
        (
            "reproduce.py",
            ["--config=configs/sandbox.py:smoek"],
            "configs/sandbox.py: expected no variant or 'smoke', found 'smoek'",
        ),
        ("sft.py", ["--config=configs/none.py"], "--config: expected a recipe, found no file configs/none.py"),
        (
            "sample.py",
            ["--prompt=a"],
            "{workdir}/ppo_ptx: expected the finished stage ppo_ptx, found none",
        ),
    ],
    ids=["unknown key", "unknown variant", "no recipe", "no stage"],
)
def test_a_script_says_so_in_one_line_and_leaves_with_2(tmp_path, script, flags, message):
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
