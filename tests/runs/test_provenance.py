"""A stage compares what it began with and what it resumes with."""

import json

import ml_collections
import pytest
from etils import epath

from instructjax.data import prepared
from instructjax.errors import ConfigError, DataError
from instructjax.runs import provenance

SETS = ("text", "rankings")
FUNCTIONS = {"judge:score": "a1b2"}
CONFIG = {"seed": 0, "sft": {"epochs": 16, "batch_size": 4}, "ppo": {"iterations": 5, "epochs": 4}, "log": {"every": 2}}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Returns a folder of sets whose fingerprint is the number of their files."""
    for name in (*SETS, "prompts"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.setattr(prepared, "fingerprint", lambda data, name: f"{name}-{len(list((data / name).iterdir()))}")
    return epath.Path(tmp_path / "data")


@pytest.fixture
def began(data):
    path = data.parent / "began.json"
    path.write_text(json.dumps(provenance.describe(data, SETS, FUNCTIONS)))
    return path


def test_sets_that_do_not_exist_are_left_out(data):
    assert list(provenance.describe(data, ["text", "demonstrations"], {})["records"]) == ["text"]


def test_only_the_sets_that_are_used_must_be_the_same(data, began):
    (data / "prompts" / "more").touch()
    provenance.check(began, data, SETS, FUNCTIONS)
    (data / "rankings" / "more").touch()
    with pytest.raises(DataError) as error:
        provenance.check(began, data, SETS, FUNCTIONS)
    assert str(error.value) == (
        f"{began}: rankings: expected the records that the stage began with (rankings-0), found rankings-1; "
        "choose another --workdir"
    )


def test_a_set_that_is_gone(data, began):
    (data / "text").rmdir()
    with pytest.raises(DataError, match="text: expected the records .* found none; choose another --workdir"):
        provenance.check(began, data, SETS, FUNCTIONS)


def test_other_code_is_a_warning(data, began, capsys):
    provenance.check(began, data, SETS, FUNCTIONS)
    assert capsys.readouterr().out == ""
    began.write_text(json.dumps({**json.loads(began.read_text()), "code": "0.0.1 abcdef01"}))
    provenance.check(began, data, SETS, FUNCTIONS)
    assert capsys.readouterr().out.startswith(f"warning: {began}: begun with instructjax 0.0.1 abcdef01, this is ")


def changed(**changes):
    config = ml_collections.ConfigDict(CONFIG)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_named_sections_must_be_the_same(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    path.write_text(json.dumps(CONFIG))
    provenance.check_config(changed(log__every=10), path, ("seed", "sft"))
    with pytest.raises(ConfigError) as error:
        provenance.check_config(changed(seed=1, sft__epochs=2), path, ("seed", "sft"))
    assert str(error.value) == (
        f"{path}: seed: expected 0, as the stage began with, found 1; "
        "sft.epochs: expected 16, as the stage began with, found 2; choose another --workdir"
    )


def test_keys_that_a_stage_names_may_change(tmp_path):
    path = epath.Path(tmp_path / "config.json")
    path.write_text(json.dumps(CONFIG))
    allowed = {"may_change": ("ppo.iterations",)}
    provenance.check_config(changed(ppo__iterations=50), path, ("ppo",), **allowed)
    with pytest.raises(ConfigError, match="ppo.epochs: expected 4"):
        provenance.check_config(changed(ppo__epochs=5), path, ("ppo",), **allowed)
    with pytest.raises(ConfigError, match="ppo.iterations: expected"):
        provenance.check_config(changed(ppo__iterations=50), path, ("ppo",))


def test_another_file_of_a_reward_function_is_a_warning(data, began, capsys):
    provenance.check(began, data, SETS, {"judge:score": "c3d4"})
    found = capsys.readouterr().out
    assert found.startswith(f"warning: {began}: begun with another file of judge:score (a1b2), this is c3d4")
    provenance.check(began, data, SETS, {"another:score": "c3d4"})  # which the comparison of recipes refuses
    assert capsys.readouterr().out == ""
