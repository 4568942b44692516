"""A wheel claims one name and runs the scripts from any folder."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

from instructjax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("instructjax", "configs", "experiments")
BUILT_FROM = (*FOLDERS, "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
MODULES = {"command_line", "flag_errors", "claims_arms", "claims_measures"}  # that scripts import
SCRIPTS = sorted({path.stem for path in (ROOT / "experiments").glob("*.py")} - MODULES)


def instructjax(*arguments, cwd, python=sys.executable, **environment):
    """Runs what the command `instructjax` runs."""
    return subprocess.run(
        [str(python), "-m", "instructjax", *arguments],
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


def test_the_error_for_an_unknown_script_lists_the_scripts(tmp_path):
    message = refused(instructjax("reproduse", cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert message == f"instructjax: expected one of {', '.join(SCRIPTS)}, found 'reproduse'"
    message = refused(instructjax(cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert message == f"instructjax: expected one of {', '.join(SCRIPTS)}, found none"


def test_help_lists_the_scripts(tmp_path):
    printed_lines = printed(instructjax("--help", cwd=tmp_path, PYTHONPATH=str(ROOT))).splitlines()
    listed = dict(line.split(maxsplit=1) for line in printed_lines[printed_lines.index("SCRIPT is one of") + 1 :])
    assert list(listed) == SCRIPTS
    assert listed["pretrain"] == "Trains GPT on pretraining text: WORKDIR/pretrain."


def test_recipes_are_found_from_any_folder(tmp_path):
    flags = ("sample", "--config=configs/sandbox.py:smoke", "--prompt=a")
    message = refused(instructjax(*flags, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert message == "runs/sandbox-smoke/ppo_ptx: expected a checkpoint of the stage ppo_ptx, found none"


def test_versions_agree():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Copies the files from which a wheel is built, because a build leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        copy = shutil.copytree if name in FOLDERS else shutil.copyfile
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Builds the file. Fetches setuptools."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=300)
    (file,) = folder.glob("instructjax-*.whl")
    return file


@pytest.fixture
def installed(wheel, tmp_path):
    """Runs scripts in an empty folder, where the wheel is installed next to the packages of this environment."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    (tmp_path / "elsewhere").mkdir()
    return functools.partial(instructjax, cwd=tmp_path / "elsewhere", python=python, PYTHONPATH=packages)


@pytest.mark.slow
def test_a_wheel_claims_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"instructjax-{__version__}.dist-info/top_level.txt").split() == [b"instructjax"]
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert names == {"instructjax", f"instructjax-{__version__}.dist-info"}


@pytest.mark.slow
def test_a_wheel_has_every_module_recipe_and_script(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "instructjax").rglob("*.py")}
    copies = [*(ROOT / "configs").glob("*.py"), *(ROOT / "experiments").glob("*.py")]
    packed = {f"instructjax/_scripts/{path.relative_to(ROOT)}" for path in copies}
    assert {name for name in names if name.endswith(".py")} == modules | packed


@pytest.mark.slow
def test_an_sdist_has_what_a_wheel_is_built_from(source, wheel):
    listed = {os.path.normpath(name) for name in (source / "instructjax.egg-info" / "SOURCES.txt").read_text().split()}
    files = {path.relative_to(source) for name in BUILT_FROM for path in [source / name, *(source / name).rglob("*")]}
    wanted = {str(file) for file in files if (source / file).is_file() and "__pycache__" not in file.parts}
    assert wanted <= listed


@pytest.mark.slow
def test_a_wheel_gives_the_same_errors_as_the_repository(installed):
    assert refused(installed("sample", "--prompt=a")) == (
        "runs/sandbox/ppo_ptx: expected a checkpoint of the stage ppo_ptx, found none"
    )


@pytest.mark.slow
def test_a_wheel_trains_samples_and_exports(installed, tmp_path):
    few = ("--config.pretrain.steps=2", "--config.log.every=1")
    printed(installed("pretrain", "--config=configs/sandbox.py:smoke", "--workdir=run", *few))
    assert "2 steps" in printed(installed("watch", "run"))
    assert "the fox" in printed(installed("sample", "--workdir=run", "--stage=pretrain", "--prompt=the fox"))
    printed(installed("export_weights", "--workdir=run", "--stage=pretrain", "--output=out"))
    assert (tmp_path / "elsewhere" / "out" / "model.safetensors").exists()
