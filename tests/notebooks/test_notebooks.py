"""The notebooks that plot run on the saved numbers of full runs, and are committed with their outputs.

The one that trains is committed without outputs, and runs on a CPU as it does on an accelerator.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import sys
import types

import pytest

from instructjax.reporting import run_groups
from tests import smollm2
from tests.local_data import DATA
from tests.reporting.run_folders import write_run

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
TRAINING = FOLDER / "accelerator.ipynb"
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - {TRAINING})

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
    names = ["1_tour", "2_losses", "3_ppo", "4_ranking_loss", "5_human_data", "6_plans", "7_claims"]
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


# The notebook for accelerators.

LOCAL = {  # the names in docs/smollm2.md
    "dolly_15k.jsonl.gz": "dolly_15k/dolly_15k.jsonl.gz",
    "oasst1_demonstrations.jsonl.gz": "oasst1_en/validation_demonstrations.jsonl.gz",
    "oasst1_rankings.jsonl.gz": "oasst1_en/validation_rankings.jsonl.gz",
    "gpt3_explanations.jsonl.gz": "gpt3_explanations_k5/rankings.jsonl.gz",
    "storybooks.jsonl.gz": "storybooks/storybooks.jsonl.gz",
}
BACKENDS = "from jax._src import xla_bridge\nprint('backends:', xla_bridge._backends)"


def first_cell():
    """Returns the first cell of code of the notebook that trains, as Python."""
    source = next(cell.source for cell in nbformat.read(TRAINING, as_version=4).cells if cell.cell_type == "code")
    return TransformerManager().transform_cell(source)


def commands_of_first_cell():
    """Executes the first cell, and returns its commands and variables."""
    commands = []
    shell = types.SimpleNamespace(
        system=commands.append, run_line_magic=lambda name, line: commands.append(f"%{name} {line}")
    )
    namespace = {"get_ipython": lambda: shell}
    exec(first_cell().replace('REPOSITORY = ""', 'REPOSITORY = "URL"'), namespace)
    return commands, namespace


def test_the_notebook_that_trains_has_no_outputs():
    cells = nbformat.read(TRAINING, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize(
    "variable, devices, extra",
    [
        ("KAGGLE_KERNEL_RUN_TYPE", ("nvidia-smi",), "[cuda12]"),
        ("KAGGLE_KERNEL_RUN_TYPE", ("/dev/vfio/[0-9]*",), "[tpu]"),
        ("KAGGLE_KERNEL_RUN_TYPE", (), ""),
        ("HOME", ("nvidia-smi",), "[cuda12]"),  # not hosted: nothing is installed
    ],
)
def test_jax_is_installed_for_the_accelerator_that_is_there(tmp_path, monkeypatch, variable, devices, extra):
    (tmp_path / "instructjax" / "notebooks").mkdir(parents=True)  # as the clone
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setenv(variable, "Interactive")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in devices else None)
    monkeypatch.setattr("glob.glob", lambda pattern: [pattern] if pattern in devices else [])
    commands, namespace = commands_of_first_cell()
    assert namespace["extra"] == extra
    installed = [line for line in commands if line.startswith("%pip")]
    if variable == "HOME":
        assert not commands
    else:
        # IPython replaces {extra} in a magic from the variables of the notebook.
        assert installed[0].endswith('"./instructjax[gguf,huggingface,tasks]" "jax{extra}"') and len(commands) == 4


def test_the_first_cell_may_run_again_in_a_new_session_and_after_a_failed_installation(tmp_path, monkeypatch):
    (tmp_path / "instructjax" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "instructjax" else None)
    assert commands_of_first_cell()[0] == ["%cd instructjax/notebooks"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # finds the folder of the clone
    assert sum(line.startswith("%pip") for line in commands_of_first_cell()[0]) == 2


@pytest.mark.slow
def test_the_notebook_trains_on_a_cpu_and_leaves_the_devices_to_its_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("DATA", raising=False)
    if smollm2.FILE is not None and all((DATA / file).is_file() for file in LOCAL.values()):
        for name, file in LOCAL.items():
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / name).symlink_to(DATA / file)
        monkeypatch.setenv("DATA", str(tmp_path / "data"))
    notebook = nbformat.read(TRAINING, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(BACKENDS))
    (tmp_path / "notebook").mkdir()
    copy = tmp_path / "notebook" / TRAINING.name
    nbformat.write(notebook, copy)
    found = list(shown(execute.execute(copy, tmp_path / "runs", timeout=3600)))
    assert found.count("figure") == 2
    assert "CpuDevice(id=0)" in found[0] and found[-1] == "backends: {}\n"
    assert "ppo_ptx" in found[1] and (tmp_path / "runs" / "sandbox-smoke" / "report.md").exists()
    if "DATA" in os.environ:
        assert (tmp_path / "runs" / "smollm2-smoke" / "results.json").exists() and "ppo_ptx" in found[-2]
    elif smollm2.FILE is not None:
        assert "Name three colors." in found[-2]
