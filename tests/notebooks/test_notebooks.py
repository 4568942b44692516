"""Every notebook runs on the saved numbers of full runs, and is committed with its output."""

import importlib.util
import pathlib
import re
import shutil
import sys
import types

import pytest

from instructjax.reporting import run_groups
from tests.reporting.run_folders import write_run

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
pytest.importorskip("nbclient", reason="needs the extra notebooks")
from IPython.core.inputtransformer2 import TransformerManager  # noqa: E402

sys.path.insert(0, str(FOLDER))
import execute  # noqa: E402


def shown(notebook):
    """Returns the outputs of a notebook's cells as text; figures are only named."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
            data = output.get("data", {})
            yield "figure" if "image/png" in data else output.get("text") or data["text/plain"]


def test_there_are_notebooks():
    names = ["1_tour", "2_losses", "3_ppo", "4_ranking_loss", "5_human_data", "6_plans"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_is_committed(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    found = list(shown(execute.execute(path, FOLDER / "runs")))
    assert found == list(shown(nbformat.read(path, as_version=4)))
    assert "figure" in found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_folder_of_a_machine_is_shown(path):
    text = "\n".join(shown(nbformat.read(path, as_version=4)))
    assert not re.search(r"/(home|root|tmp|Users|usr|work)/", text)


def test_numbers_of_another_run_replace_those_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    shutil.copytree(FOLDER / "runs", tmp_path / "runs")
    shutil.copytree(FOLDER / "runs" / "sandbox", tmp_path / "mine")
    execute.main([tmp_path / "mine"])
    assert [run.name for group in run_groups.load_groups(tmp_path / "runs") for run in group.runs] == ["e2e", "mine"]


@pytest.fixture(scope="session")
def partial_runs(tmp_path_factory):
    """A folder with pretraining and SFT of a run on files, nothing else."""
    recipe = {"seed": 0, "files": {"text": "a.jsonl"}}
    return write_run(tmp_path_factory.mktemp("runs") / "own", recipe=recipe, finished=False).parent


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[0] in "1235"], ids=lambda path: path.stem)
def test_it_shows_a_partial_run_on_own_data(path, partial_runs, monkeypatch, capsys):
    monkeypatch.setenv("RUNS", str(partial_runs))
    namespace = {"get_ipython": lambda: types.SimpleNamespace(run_line_magic=lambda *words: None)}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(TransformerManager().transform_cell(cell.source), namespace)
    assert "own, seed 0: pretrain; sft unfinished at step 40, no reward" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_does_nothing_outside_colab_and_asks_for_the_repository_there(path, monkeypatch):
    source = next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    commands = []
    shell = types.SimpleNamespace(system=commands.append, run_line_magic=lambda *words: commands.append(words))
    code = TransformerManager().transform_cell(source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(code, {"get_ipython": lambda: shell})
    assert not commands

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "instructjax" else name)
    with pytest.raises(ValueError, match="^REPOSITORY: expected the URL of a clone of instructjax, found none; set it"):
        exec(code, {"get_ipython": lambda: shell})
    exec(code.replace('REPOSITORY = ""', 'REPOSITORY = "URL"'), {"get_ipython": lambda: shell})
    assert commands[0].startswith("git clone") and len(commands) == 3

    commands.clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    exec(code, {"get_ipython": lambda: shell})
    assert not commands  # it is installed already
