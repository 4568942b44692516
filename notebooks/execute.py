"""Executes the notebooks in place, from the numbers in notebooks/runs: python notebooks/execute.py [RUN ...]

Needs the extra notebooks.
With RUNs, folders of finished runs, their numbers first take the place of those in notebooks/runs: runs on human
data the place of such runs, others that of others.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING

from instructjax.errors import InputError
from instructjax.reporting import views

if TYPE_CHECKING:
    import nbformat

PACKAGES = ("ipykernel", "nbclient", "nbformat")  # those of the extra notebooks

FOLDER = pathlib.Path(__file__).resolve().parent
TIMEOUT = 120  # seconds for a cell


def execute(path: pathlib.Path, runs: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells; `runs` is the folder of runs that it reads.

    What differs from one execution to the next (times, ids) is left out.
    """
    import nbclient  # here, so that `main` can tell that it is missing
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    os.environ["RUNS"] = str(runs)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources, coalesce_streams=True
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
    """Saves the numbers of the runs, if any are given, and executes every notebook."""
    check_packages()
    import nbformat

    saved = FOLDER / "runs"
    if runs:
        new = [views.load(run) for run in runs]  # all of them are whole, before anything is removed
        for path in saved.glob("*/results.json"):
            if views.load(path.parent).is_human in {run.is_human for run in new}:
                shutil.rmtree(path.parent)
        for folder, run in zip(runs, new, strict=True):
            views.save(folder, saved / run.name)
    for path in sorted(FOLDER.glob("*.ipynb")):
        print(path.name)
        nbformat.write(execute(path, saved), path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
