"""Folders go to a model hub and come back, through the real client and a hub on this machine."""

import contextlib
import json

import pytest

from instructjax import hub
from instructjax.errors import InputError
from tests import fake_hub

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")

FILES = {"config.json": b"{}", "model.safetensors": b"\0" * 64, "README.md": b"---\nlicense: mit\n---\n# Mine\n"}


@contextlib.contextmanager
def hub_here(token="hf_secret"):
    """Serves a hub, and lets the client use it with a token."""
    found = fake_hub.Hub()
    with fake_hub.serve(found) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("{")
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{''.join(template[1:])}")
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        patch.setenv("HF_TOKEN", token)
        yield found


@pytest.fixture
def here():
    with hub_here() as found:
        yield found


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


def pushed(folder, repo="me/mine", is_public=False):
    hub.create(repo, is_public=is_public)
    return hub.upload(folder, repo, "Add a model")


def test_a_folder_comes_back(here, folder, tmp_path):
    url = pushed(folder)
    assert here.files["me/mine"] == FILES and here.messages["me/mine"] == "Add a model"
    assert url.endswith(f"/me/mine/commit/{here.sha('me/mine')}")
    assert hub.download("me/mine", tmp_path / "back") == sorted(FILES)
    assert {name: (tmp_path / "back" / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("is_public", [False, True])
def test_a_new_repository_is_private_unless_asked_otherwise(here, folder, tmp_path, monkeypatch, is_public):
    pushed(folder, is_public=is_public)
    monkeypatch.setenv("HF_TOKEN", "hf_of_others")
    with contextlib.nullcontext() if is_public else pytest.raises(InputError, match="me/mine: expected a repository"):
        hub.download("me/mine", tmp_path / "back")


def test_a_second_push_replaces_files_and_a_second_pull_gets_them(here, folder, tmp_path):
    pushed(folder)
    hub.download("me/mine", tmp_path / "back")
    (folder / "config.json").write_text('{"new": 1}')
    pushed(folder)
    hub.download("me/mine", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == '{"new": 1}'


def test_files_that_another_revision_does_not_have_are_removed(here, tmp_path):
    here.files["me/mine"] = {**FILES, "onnx/quantize_config.json": b"{}", "model-00001-of-00002.safetensors": b"\0"}
    hub.download("me/mine", tmp_path / "back")
    (tmp_path / "back" / "notes.txt").write_text("my own")
    here.files["me/mine"] = FILES
    assert hub.download("me/mine", tmp_path / "back") == sorted(FILES)
    left = {path.name for path in (tmp_path / "back").rglob("*") if path.is_file() and ".cache" not in path.parts}
    assert left == {*FILES, "notes.txt"}


def test_a_download_that_stops_leaves_the_list_of_both_revisions(here, tmp_path, monkeypatch):
    here.files["me/mine"] = {**FILES, "vocab.json": b"{}"}
    hub.download("me/mine", tmp_path / "back")
    here.files["me/mine"] = FILES
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi.snapshot_download", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hub.download("me/mine", tmp_path / "back")
    assert (tmp_path / "back" / "vocab.json").exists()
    hub.download("me/mine", tmp_path / "back")
    assert not (tmp_path / "back" / "vocab.json").exists()


OUTSIDE = ["../a.json", "/tmp/a.json", "b/../../a.json", "..\\a.json", "C:a.json", ".cache/huggingface/pulled.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_the_folder_are_rejected(here, tmp_path, name):
    here.files["me/mine"] = {**FILES, name: b"{}"}
    with pytest.raises(InputError, match="me/mine: expected names of files inside the folder, found"):
        hub.download("me/mine", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_no_file_outside_the_folder_is_removed(here, folder, tmp_path):
    pushed(folder)
    back, mine = tmp_path / "back", tmp_path / "mine.txt"
    hub.download("me/mine", back)
    mine.write_text("my own")
    for name in (str(mine), "../mine.txt"):
        record = {"repository": "me/mine", "files": [name]}
        (back / ".cache" / "huggingface" / "pulled.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="pulled.json: expected the list of an earlier download"):
            hub.download("me/mine", back)
        assert mine.exists()


def test_a_file_whose_name_changes_its_case_stays(here, tmp_path):
    here.files["me/mine"] = {**FILES, "LICENSE.TXT": b"old"}
    hub.download("me/mine", tmp_path / "back")
    here.files["me/mine"] = {**FILES, "LICENSE.txt": b"new"}
    hub.download("me/mine", tmp_path / "back")
    assert {"LICENSE.TXT", "LICENSE.txt"} <= {path.name for path in (tmp_path / "back").iterdir()}


def test_pickle_files_are_left_out(here, tmp_path):
    here.files["me/old"] = {**FILES, "pytorch_model.bin": b"", "optimizer.pt": b"", "handler.py": b""}
    assert hub.download("me/old", tmp_path / "back") == sorted(FILES)
    assert sorted(path.name for path in (tmp_path / "back").iterdir() if path.is_file()) == sorted(FILES)


def test_an_offline_client_does_not_take_an_old_folder_for_the_repository(here, folder, tmp_path, monkeypatch):
    pushed(folder)
    hub.download("me/mine", tmp_path / "back")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="me/mine: expected a connection to the hub"):
        hub.download("me/mine", tmp_path / "back")
