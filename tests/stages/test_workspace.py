"""A folder belongs to the recipe that it was begun with."""

import json
import pathlib
import time

import pytest

from configs import sandbox
from instructjax.errors import ConfigError, DataError
from instructjax.runs import provenance
from instructjax.stages import prepare, workspace
from tests.tiny_recipes import changed, recipe, save_stage


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(config, workdir): data are prepared, and all stages have begun."""
    folder = tmp_path_factory.mktemp("begun")
    config, workdir = recipe(folder), folder / "run"
    layout = prepare.run(config, workdir)
    for stage in workspace.STAGES:
        workspace.begin(config, workdir, stage)
        save_stage(config, workdir, stage, layout.tokenizer)
    return config, workdir


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "sft",
            {"sft__learning_rate": 0.5},
            "sft.learning_rate: expected 9.65e-06, as the stage began with, ",
        ),
        ("pretrain", {"seed": 1}, "seed: expected 0, as the stage began with, found 1"),
        ("ppo_init", {"model__num_heads": 2}, "model.num_heads: expected 1, as the stage began with, found 2"),
        ("reward", {"comparisons__max_answers": 8}, "comparisons.max_answers: expected 9, "),
        ("ppo_ptx", {"ppo__ptx_coefficient": 1.0}, "ppo.ptx_coefficient: expected 27.8, "),
    ],
)
def test_a_stage_goes_on_only_with_the_recipe_it_began_with(begun, stage, changes, message):
    config, workdir = begun
    path = workdir / stage / "config.json"
    before = path.read_text()
    with pytest.raises(ConfigError) as error:
        workspace.begin(changed(config, **changes), workdir, stage)
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith("; choose another --workdir")
    assert path.read_text() == before


def test_every_key_that_differs_is_told(begun):
    config, workdir = begun
    changes = {"seed": 1, "sft__learning_rate": 0.5, "model__num_heads": 2, "log__every": 10}
    with pytest.raises(ConfigError) as error:
        workspace.begin(changed(config, **changes), workdir, "sft")
    assert str(error.value).count("as the stage began with") == 3


@pytest.mark.parametrize(
    ("stage", "name"),
    [("pretrain", "text"), ("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts"), ("ppo_ptx", "text")],
)
def test_a_stage_goes_on_only_with_the_records_it_began_with(tmp_path, stage, name):
    config, workdir = recipe(tmp_path), tmp_path / "run"
    layout = prepare.run(config, workdir)
    workspace.begin(config, workdir, stage)
    save_stage(config, workdir, stage, layout.tokenizer)
    file = pathlib.Path(config.files[name])
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[3], *lines[1:]]) + "\n")
    prepare.run(config, workdir)
    with pytest.raises(DataError) as error:
        workspace.begin(config, workdir, stage)
    assert str(error.value).startswith(f"{workdir}/{stage}/began.json: {name}: expected the records that the stage")
    other = "prompts" if stage == "pretrain" else "text"
    if other not in provenance.USES[stage]:  # what a stage does not use may change
        file.write_text("\n".join(lines) + "\n")
        pathlib.Path(config.files[other]).write_text("\n".join(lines_of(config, other)[::-1]) + "\n")
        prepare.run(config, workdir)
        workspace.begin(config, workdir, stage)


def lines_of(config, name):
    return pathlib.Path(config.files[name]).read_text().splitlines()


def test_other_code_is_a_warning(begun, capsys):
    config, workdir = begun
    path = workdir / "sft" / "began.json"
    began = json.loads(path.read_text())
    path.write_text(json.dumps({**began, "code": "0.0.1 abcdef01"}))
    workspace.begin(config, workdir, "sft")
    line = capsys.readouterr().out
    assert line.startswith(f"warning: {path}: begun with instructjax 0.0.1 abcdef01, this is ")
    path.write_text(json.dumps(began))
    workspace.begin(config, workdir, "sft")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {"reward__learning_rate": 0.5}),
        ("sft", {"log__every": 10}),
        ("ppo", {"ppo_log__keep": 5}),
        ("ppo", {"evaluate__prompts": 7}),
        ("ppo_ptx", {"ppo__iterations": 7}),
    ],
)
def test_what_does_not_matter_to_a_stage_may_change(begun, stage, changes):
    config, workdir = begun
    before = (workdir / stage / "config.json").read_text()
    workspace.begin(changed(config, **changes), workdir, stage)
    assert (workdir / stage / "config.json").read_text() == before


def test_only_work_is_added_to_the_cost(tmp_path):
    def seconds():
        return json.loads((tmp_path / "cost.json").read_text())["sft"]["seconds"]

    config = sandbox.get_config()

    def fail(config, workdir):
        raise ConfigError("seed: expected another, found this")

    run = workspace.timed("sft")(lambda config, workdir: time.sleep(0.01))
    with pytest.raises(ConfigError):
        workspace.timed("sft")(fail)(config, tmp_path)
    assert not (tmp_path / "cost.json").exists()
    run(config, tmp_path)
    first = seconds()
    run(config, tmp_path)  # it was interrupted, and goes on
    assert first >= 0.01 and seconds() >= first + 0.01
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "summary.json").write_text("{}")
    before = seconds()
    run(config, tmp_path)
    assert seconds() == before


def test_a_stage_without_a_checkpoint_has_not_begun(tmp_path):
    config = recipe(tmp_path)
    workspace.begin(config, tmp_path, "sft")
    workspace.begin(changed(config, sft__epochs=3), tmp_path, "sft")
    assert json.loads((tmp_path / "sft" / "config.json").read_text())["sft"]["epochs"] == 3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"data__max_prompt": 20}, "data.max_prompt"),
        ({"tokenizer__vocab_size": 280}, "tokenizer.vocab_size"),
        ({"files__text": "other.jsonl"}, "files.text"),
    ],
)
def test_prepared_data_are_of_one_recipe(begun, changes, key):
    config, workdir = begun
    with pytest.raises(ConfigError, match=f"run/data/config.json: {key}: expected .*; choose another --workdir"):
        prepare.run(changed(config, **changes), workdir)


def test_data_that_were_not_finished_are_made_anew(tmp_path):
    config = recipe(tmp_path)
    prepare.run(config, tmp_path / "run")
    (tmp_path / "run" / "data" / "config.json").unlink()
    layout = prepare.run(changed(config, tokenizer__vocab_size=280), tmp_path / "run")
    assert layout.tokenizer.vocab_size == 280
