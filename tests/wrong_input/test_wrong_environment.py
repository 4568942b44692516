"""Machine and installation"""

import os
import runpy
import socket
import subprocess
import sys

from instructjax.runs import trackers
from instructjax.stages import pretrain
from instructjax.stages.run import Run
from tests.recipes import changed, recipe
from tests.scripts import SCRIPTS, Left, end_of, run
from tests.wrong_input.fault import fault


def start(script, *flags, **environment):
    """Runs a script in its own process, whose environment describes other devices."""
    finished = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *flags],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if finished.returncode:
        raise Left(finished.returncode, finished.stderr)


@fault(
    "an unknown kind of device",
    "JAX_PLATFORMS=abacus: expected a device that JAX can use, found Unable to initialize backend 'abacus': TEXT",
)
def test_no_device(tmp_path):
    start("pretrain.py", f"--workdir={tmp_path}/run", JAX_PLATFORMS="abacus")


@fault(
    "a model that does not fit in memory",
    "not enough memory: Out of memory allocating N bytes; increase the number of microbatches",
)
def test_memory(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"""import pathlib
from tests.recipes import recipe
def get_config():
    config = recipe(pathlib.Path({str(tmp_path)!r})).unlock()
    config.model.update(num_layers=10_000, d_ff=2**31 - 1)  # 700 TB
    return config
"""
    )
    run("pretrain.py", f"--config={path}", f"--workdir={tmp_path}/run")


@fault(
    "a number of tasks that is not a number",
    "OMPI_COMM_WORLD_SIZE: expected a number of processes in the environment, found 'many'",
)
def test_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "many")
    run("pretrain.py", f"--workdir={tmp_path}/run")


@fault(
    "a port that is in use",
    "--coordinator: expected a port that is free, found 127.0.0.1:N: TEXT",
)
def test_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        run("pretrain.py", f"--coordinator={address}", "--process_id=0", "--process_count=1")


@fault(
    "a missing package for notebooks",
    "expected the package nbclient to execute notebooks, found none; pip install 'instructjax[notebooks]'",
)
def test_no_nbclient(monkeypatch):
    monkeypatch.setitem(sys.modules, "nbclient", None)
    script = str(SCRIPTS.parent / "notebooks" / "execute.py")
    end_of(script, lambda: runpy.run_path(script, run_name="__main__"), [])


@fault("an unknown script", "instructjax: expected one of TEXT, found 'train'")
def test_no_script():
    finished = subprocess.run(
        [sys.executable, "-m", "instructjax", "train"],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
    )
    raise Left(finished.returncode, finished.stderr)


@fault(
    "a missing package of a tracker",
    "tracking.trackers: expected the package trackio, found none; pip install 'instructjax[trackers]'",
)
def test_no_tracker(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "trackio", "package_that_is_missing")
    pretrain.run(Run(changed(recipe(tmp_path), tracking__trackers=("trackio",)), tmp_path / "run"))
