"""A wheel runs the scripts where the repository is not."""

import functools
import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

from instructjax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTED = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__name__ ==" in path.read_text()}
SCRIPTS = STARTED - {"__main__", "benchmark_page"}  # the page is in the repository alone


def instructjax(*arguments, cwd, python=sys.executable, **environment):
    """What `python -m experiments ...` ends with."""
    return subprocess.run(
        [str(python), "-m", "experiments", *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(finished):
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    return finished.stderr.removeprefix("error: ").strip()


def printed(finished):
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_script_that_is_none_is_told_which_there_are(tmp_path):
    message = refused(instructjax("reproduse", cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert message == f"instructjax: expected one of {', '.join(sorted(SCRIPTS))}, found 'reproduse'"


def test_help_names_the_scripts(tmp_path):
    finished = instructjax("--help", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.endswith(f"\nSCRIPT is one of {', '.join(sorted(SCRIPTS))}.\n")


def test_recipes_are_found_from_any_folder(tmp_path):
    flags = ("sample", "--config=configs/sandbox.py:smoke", "--prompt=a")
    message = refused(instructjax(*flags, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert message == "runs/sandbox-smoke/ppo_ptx: expected the finished stage ppo_ptx, found none"


def test_versions_agree():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The file. Building it fetches setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (file,) = folder.glob("instructjax-*.whl")
    return file


@pytest.fixture
def installed(wheel, tmp_path):
    """Runs scripts in an empty folder, where the wheel is installed beside the packages at hand."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    (tmp_path / "elsewhere").mkdir()
    return functools.partial(instructjax, cwd=tmp_path / "elsewhere", python=python, PYTHONPATH=packages)


@pytest.mark.slow
def test_a_wheel_has_all_of_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("instructjax", "configs", "experiments"):
        assert {str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("*.py")} <= names
    assert not any(name.startswith("tests") for name in names)


@pytest.mark.slow
def test_a_wheel_refuses_as_the_repository_does(installed):
    assert refused(installed("sample", "--prompt=a")) == (
        "runs/sandbox/ppo_ptx: expected the finished stage ppo_ptx, found none"
    )


@pytest.mark.slow
def test_a_wheel_trains_samples_and_exports(installed, tmp_path):
    few = ("--config.pretrain.steps=2", "--config.log.every=1")
    printed(installed("pretrain", "--config=configs/sandbox.py:smoke", "--workdir=run", *few))
    assert "2 steps" in printed(installed("watch", "run"))
    assert "the fox" in printed(installed("sample", "--workdir=run", "--stage=pretrain", "--prompt=the fox"))
    printed(installed("export_weights", "--workdir=run", "--stage=pretrain", "--output=out"))
    assert (tmp_path / "elsewhere" / "out" / "model.safetensors").exists()
