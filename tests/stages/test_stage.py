"""A stage resumes only with the recipe and records that it began with, and any stage can be a guest."""

import dataclasses
import functools
import json
import pathlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.data import pipeline
from instructjax.errors import ConfigError, DataError
from instructjax.records import Demonstration, Prompt
from instructjax.runs import folder, trackers
from instructjax.runs.schedule import Schedule
from instructjax.stages import answers, evaluate, trained
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.stages.stage import Stage, stage
from instructjax.training.metrics import Mean
from tests.recipes import DECLARATIONS, begin, changed, prepare, recipe, save_run, save_stage


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Returns (config, workdir) with prepared data and all stages begun."""
    home = tmp_path_factory.mktemp("begun")
    config, workdir = recipe(home), home / "run"
    layout = prepare(config, workdir)
    for name in folder.PAPER:
        begin(config, workdir, name)
        save_stage(config, workdir, name, layout.tokenizer)
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
def test_a_stage_resumes_only_with_the_recipe_it_began_with(begun, stage, changes, message):
    config, workdir = begun
    path = workdir / stage / "config.json"
    before = path.read_text()
    with pytest.raises(ConfigError) as error:
        begin(changed(config, **changes), workdir, stage)
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith("; choose another --workdir")
    assert path.read_text() == before


def test_the_error_names_every_key_that_differs(begun):
    config, workdir = begun
    changes = {"seed": 1, "sft__learning_rate": 0.5, "model__num_heads": 2, "log__every": 10}
    with pytest.raises(ConfigError) as error:
        begin(changed(config, **changes), workdir, "sft")
    assert str(error.value).count("as the stage began with") == 3


@pytest.mark.parametrize(
    ("stage", "name"),
    [("pretrain", "text"), ("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts"), ("ppo_ptx", "text")],
)
def test_a_stage_resumes_only_with_the_records_it_began_with(tmp_path, stage, name):
    config, workdir = recipe(tmp_path), tmp_path / "run"
    layout = prepare(config, workdir)
    begin(config, workdir, stage)
    save_stage(config, workdir, stage, layout.tokenizer)
    file = pathlib.Path(config.files[name])
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[3], *lines[1:]]) + "\n")
    prepare(config, workdir)
    with pytest.raises(DataError) as error:
        begin(config, workdir, stage)
    assert str(error.value).startswith(f"{workdir}/{stage}/began.json: {name}: expected the records that the stage")
    other = "prompts" if stage == "pretrain" else "text"
    if other not in DECLARATIONS[stage].uses:  # what a stage does not use may change
        file.write_text("\n".join(lines) + "\n")
        pathlib.Path(config.files[other]).write_text("\n".join(lines_of(config, other)[::-1]) + "\n")
        prepare(config, workdir)
        begin(config, workdir, stage)


def lines_of(config, name):
    return pathlib.Path(config.files[name]).read_text().splitlines()


def test_other_code_is_a_warning(begun, capsys):
    config, workdir = begun
    path = workdir / "sft" / "began.json"
    began = json.loads(path.read_text())
    path.write_text(json.dumps({**began, "code": "0.0.1 abcdef01"}))
    begin(config, workdir, "sft")
    line = capsys.readouterr().out
    assert line.startswith(f"warning: {path}: begun with instructjax 0.0.1 abcdef01, this is ")
    path.write_text(json.dumps(began))
    begin(config, workdir, "sft")
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
def test_keys_that_do_not_affect_a_stage_may_change(begun, stage, changes):
    config, workdir = begun
    before = (workdir / stage / "config.json").read_text()
    begin(changed(config, **changes), workdir, stage)
    assert (workdir / stage / "config.json").read_text() == before


def test_a_stage_without_a_checkpoint_has_not_begun(tmp_path):
    config = recipe(tmp_path)
    begin(config, tmp_path, "sft")
    begin(changed(config, sft__epochs=3), tmp_path, "sft")
    assert json.loads((tmp_path / "sft" / "config.json").read_text())["sft"]["epochs"] == 3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"data__max_prompt": 20}, "data.max_prompt"),
        ({"tokenizer__vocab_size": 280}, "tokenizer.vocab_size"),
    ],
)
def test_prepared_data_are_of_one_recipe(begun, changes, key):
    config, workdir = begun
    with pytest.raises(ConfigError, match=f"run/data/config.json: {key}: expected .*; choose another --workdir"):
        prepare(changed(config, **changes), workdir)


def test_records_may_be_moved_and_named_in_another_way(tmp_path, monkeypatch):
    config = recipe(tmp_path)
    prepare(config, tmp_path / "run")
    begin(config, tmp_path / "run", "sft")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved").mkdir()
    (tmp_path / "demonstrations.jsonl").rename(tmp_path / "moved" / "d.jsonl")
    config = changed(config, files__text=" ./text.jsonl ,", files__demonstrations="moved/d.jsonl")
    run = Run(config, tmp_path / "run")
    assert len(run.records(Demonstration, "train")) == 20
    begin(config, tmp_path / "run", "sft")


def test_unfinished_data_are_prepared_again(tmp_path):
    config = recipe(tmp_path)
    prepare(config, tmp_path / "run")
    (tmp_path / "run" / "data" / "config.json").unlink()
    layout = prepare(changed(config, tokenizer__vocab_size=280), tmp_path / "run")
    assert layout.tokenizer.vocab_size == 280


def test_each_stage_has_its_own_root_key(tmp_path):
    config = recipe(tmp_path)
    declarations = [dataclasses.replace(DECLARATIONS["dpo"], name=name) for name in (*folder.PAPER, "dpo", "rloo", "")]
    keys = [jax.random.key_data(Stage(Run(config, tmp_path), found).key).tolist() for found in declarations]
    assert len({tuple(key) for key in keys}) == len(keys)
    root = jax.random.key(config.seed)
    paper = [jax.random.key_data(jax.random.fold_in(root, number)).tolist() for number in range(len(folder.PAPER))]
    assert keys[: len(paper)] == paper


@flax.struct.dataclass
class Pair:
    step: jax.Array
    first: dict
    second: dict


@stage("guest", after=("pretrain",), uses=("prompts",), policy="second/ema", section="sft")
def guest(stage):
    """Registers a guest with two networks; its policy is the second network's average."""
    start = stage.run.load_start("pretrain")
    second = {"params": jax.tree.map(jnp.copy, start), "ema": jax.tree.map(lambda x: x + 1, start)}
    state = {"step": jnp.zeros((), jnp.int32), "first": start, "second": second}

    def step(state, batch, key):
        return state.replace(step=state.step + 1), {"loss": Mean(jnp.ones(()), jnp.ones(()))}

    prompts = pipeline.prompt_rows(stage.run.records(Prompt, "train"), stage.run.layout)
    stage.train_with(
        step,
        Pair(**state),
        lambda: pipeline.shuffled_batches(prompts, batch_size=8, seed=0),
        schedule=Schedule.from_config(stage.config.log, steps=2),
    )


@pytest.fixture(scope="module")
def visited(tmp_path_factory):
    """Returns a run with a trained guest, and stages of the paper that look finished."""
    home = tmp_path_factory.mktemp("guest")
    config = changed(recipe(home), evaluate__batch_size=8, evaluate__prompts=8, evaluate__text_windows=4)
    config = changed(config, evaluate__few_shot=0, evaluate__few_shot_candidates=1, evaluate__guests=("guest",))
    run = Run(config, home / "run", "name")
    save_run(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.PACKAGES, "mlflow", "json")
        patch.setitem(trackers.TRACKERS, "mlflow", functools.partial(Listed, home / "tracked.jsonl"))
        guest(Run(changed(config, tracking__trackers=("mlflow",)), run.workdir))
    return run


class Listed:
    """A tracker that is a file."""

    def __init__(self, path, tracked):
        self.path = path
        self.add([tracked.name, tracked.config["sft.epochs"]])

    def add(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write(self, step, scalars):
        self.add([step, scalars["loss"]])

    def close(self):
        self.add("closed")


def test_any_stage_is_tracked(visited):
    found = [json.loads(line) for line in (visited.workdir.parent / "tracked.jsonl").read_text().splitlines()]
    assert found == [["run/guest", visited.config.sft.epochs], [2, 1.0], "closed"]


def test_any_stage_declares_the_place_of_its_policy(visited):
    start, found = visited.load_start("pretrain"), visited.load_policy("guest").params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), start, found)
    further = visited.load_start("sft", str(visited.checkpoints("guest")))  # as sft.init_from would name it
    jax.tree.map(np.testing.assert_array_equal, further, found)


def test_any_stage_s_policy_answers(visited):
    opened, layout = visited.open_policy("guest")
    jax.tree.map(np.testing.assert_array_equal, opened.params, visited.load_policy("guest").params)
    ((prompt, _),) = answers.answer(opened, layout, ["the fox"], jax.random.key(0), Sampling(1.0, 8))
    assert prompt == "the fox"


def test_what_a_stage_declares_is_saved_with_its_checkpoints(visited):
    expected = json.loads(json.dumps(dataclasses.asdict(guest.declaration)))
    assert trained.read_meta(visited.checkpoints("guest"), None)["stage"] == expected
    assert folder.began(visited.workdir, "guest")["stage"] == expected
    assert expected["policy"] == "second/ema" and expected["sections"] == ["sft"]


def test_a_guest_resumes_only_with_its_own_section_and_sets(visited):
    with pytest.raises(ConfigError, match="guest/config.json: sft.learning_rate: expected .*; choose another"):
        guest(Run(changed(visited.config, sft__learning_rate=0.5), visited.workdir))
    guest(Run(changed(visited.config, reward__learning_rate=0.5), visited.workdir))


@pytest.mark.slow
def test_a_guest_is_judged_with_the_papers_models(visited):
    found = evaluate.evaluate(visited)["models"]
    assert found.keys() == {"gpt", "gpt_prompted", "sft", "ppo", "ppo_ptx", "guest"}
    assert found["guest"]["reward"]["n"] == found["sft"]["reward"]["n"] == 8
    assert found["guest"]["pretrain_loss"] != found["gpt"]["pretrain_loss"]
    rows = [json.loads(line) for line in (visited.workdir / "evaluate" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all("guest" in row for row in rows)
    assert "guest" in (visited.workdir / "report.md").read_text().lower()
