"""Compiled programs are kept in the folder of a run or the user's folder, without those that a kill truncated."""

import os
import time

import command_line
import jax
import pytest
from etils import epath


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Hides the user's cache folder and all but one device."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def entry(folder, name, age):
    (folder / name).write_text("compiled")
    os.utime(folder / name, (time.time() - age,) * 2)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_used_and_marked_during_a_run(tmp_path):
    folder = epath.Path(tmp_path) / "compiled"
    with command_line.compiled_kept(folder):
        assert jax.config.jax_compilation_cache_dir == str(folder)
        assert names(folder) == [".in_use"]
    assert names(folder) == []


def test_a_finished_run_keeps_all_programs_and_a_killed_run_all_but_the_newest(tmp_path):
    folder = epath.Path(tmp_path)
    for name, age in (("a-cache", 30), ("b-cache", 10), ("c-cache", 20), ("b-atime", 5)):
        entry(folder, name, age)
    with pytest.raises(KeyboardInterrupt), command_line.compiled_kept(folder):
        assert "b-cache" in names(folder)
        raise KeyboardInterrupt
    (folder / ".in_use").touch()  # what a SIGKILL leaves
    with command_line.compiled_kept(folder):
        assert names(folder) == [".in_use", "a-cache", "b-atime", "c-cache"]


def test_the_users_own_folder_is_left_alone(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    with command_line.compiled_kept(epath.Path(tmp_path) / "compiled"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert names(tmp_path) == []


def test_programs_for_several_cpu_devices_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with command_line.compiled_kept(epath.Path(tmp_path) / "compiled"):
        assert jax.config.jax_compilation_cache_dir is None
    assert names(tmp_path) == []
