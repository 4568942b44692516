"""Every notebook runs on the saved numbers of full runs, and is committed with its output."""

import pathlib
import re
import shutil
import sys

import pytest

from instructjax.errors import DataError
from instructjax.reporting import views

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
pytest.importorskip("nbclient", reason="needs the extra notebooks")
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
    assert [run.name for run in views.load_all(tmp_path / "runs")] == ["mine"]
    assert [run.name for run in views.load_all(tmp_path / "runs", human=True)] == ["e2e"]


def test_a_run_without_results_is_named(tmp_path):
    with pytest.raises(DataError, match="expected a finished run, found no results.json$"):
        views.load(tmp_path)
    with pytest.raises(DataError, match="expected a finished run without human data, found 0 others$"):
        views.load_all(tmp_path)
