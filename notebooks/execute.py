"""Executes the notebooks that plot, in place, from the numbers in notebooks/runs: python notebooks/execute.py [RUN ...]

Needs the extra notebooks. accelerator.ipynb trains, and is kept without outputs.
With RUNs, folders of runs, their numbers first replace those in notebooks/runs: runs on human data replace such runs,
others replace the others.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING

from instructjax.errors import InputError
from instructjax.reporting import run_groups

if TYPE_CHECKING:
    import nbformat

PACKAGES = ("ipykernel", "nbclient", "nbformat")  # those of the extra notebooks

FOLDER = pathlib.Path(__file__).resolve().parent
PLOTS = "[0-9]_*.ipynb"
TIMEOUT = 120  # seconds for a cell


def execute(path: pathlib.Path, runs: pathlib.Path, timeout: int = TIMEOUT) -> nbformat.NotebookNode:
    """Returns the notebook with the outputs of its cells, without what differs between executions (times, ids).

    Args:
      path: of the notebook.
      runs: the folder of runs that it reads, or writes.
      timeout: seconds for a cell.
    """
    import nbclient  # here, so that `main` can tell that it is missing
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    os.environ["RUNS"] = str(runs)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=resources, coalesce_streams=True
    )
    client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def check_packages():
    """Raises InputError where a package of the extra is missing."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"expected the package {name} to execute notebooks, found none; pip install 'instructjax[notebooks]'"
            )


def main(runs):
    """Saves the numbers of the runs, if any are given, and executes every notebook that plots."""
    check_packages()
    import nbformat

    saved = FOLDER / "runs"
    if runs:
        new = [run_groups.load(run) for run in runs]  # all of them are readable, before anything is removed
        for group in run_groups.load_groups(saved):
            for run in group.runs:
                if run.is_human in {other.is_human for other in new}:
                    shutil.rmtree(saved / run.name)
        for folder, run in zip(runs, new, strict=True):
            run_groups.save(folder, saved / run.name)
    for path in sorted(FOLDER.glob(PLOTS)):
        print(path.name)
        nbformat.write(execute(path, saved), path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
