"""Models to share on a hub"""

import sys

import pytest

from instructjax import hub
from instructjax.stages import shared
from instructjax.stages.run import Run
from tests.recipes import recipe
from tests.scripts import run
from tests.test_hub import FILES, hub_here
from tests.wrong_input.fault import fault


@pytest.fixture
def here():
    with hub_here() as found:
        found.files["me/mine"] = dict(FILES)
        yield found


@fault(
    "neither a repository nor a folder",
    "--repo: expected a repository, OWNER/NAME, or a folder in --output, found neither",
)
def test_nothing_to_write():
    run("push.py")


@fault("a repository without its owner", "--repo: expected a repository, OWNER/NAME, found 'mine'")
def test_no_owner(tmp_path):
    run("pull.py", "--repo=mine", f"--output={tmp_path}/base")


@fault("no package for a hub", "expected the package huggingface_hub, found none; pip install 'instructjax[hub]'")
def test_no_huggingface_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.download("me/mine", tmp_path / "base")


@fault(
    "no token",
    "--repo: expected a token of the hub, in HF_TOKEN or saved by 'hf auth login', found none; --output alone "
    "writes the folder without it",
)
def test_no_token():
    with hub_here(token=""):
        hub.create("me/mine", is_public=False)


@fault("a token that the hub does not know", "me/mine: expected a valid token, found 401: TEXT")
def test_wrong_token():
    with hub_here(token="hf_other"):
        hub.create("me/mine", is_public=False)


@fault("a repository of somebody else", "you/mine: expected a token that may write here, found 403: TEXT")
def test_wrong_owner(here):
    hub.create("you/mine", is_public=False)


@fault(
    "a repository that does not exist, or that one may not read",
    "me/none: expected a repository that you may read, found none; check its name and HF_TOKEN",
)
def test_no_repository(here, tmp_path):
    hub.download("me/none", tmp_path / "base")


@fault("a missing revision", "me/mine: expected the revision 'v9', found no such branch, tag or commit")
def test_no_revision(here, tmp_path):
    hub.download("me/mine", tmp_path / "base", "v9")


@fault("a repository of pickle files", "me/mine: expected safetensors or GGUF files, found 'pytorch_model.bin'")
def test_pickles(here, tmp_path):
    here.files["me/mine"] = {"pytorch_model.bin": b""}
    hub.download("me/mine", tmp_path / "base")


@fault(
    "a folder with other files",
    "PATH: expected no folder, an empty one or one with me/mine, found other files",
)
def test_other_files(here, tmp_path):
    (tmp_path / "a.txt").touch()
    hub.download("me/mine", tmp_path)


@fault(
    "a folder with another repository",
    "PATH: expected no folder, an empty one or one with me/mine, found me/other",
)
def test_other_repository(here, tmp_path):
    here.files["me/other"] = {"model.safetensors": b""}
    hub.download("me/other", tmp_path / "base")
    hub.download("me/mine", tmp_path / "base")


@fault(
    "a repository whose files have names outside it",
    "me/mine: expected names of files inside the folder, found '../config.json'; pull another revision",
)
def test_names_outside(here, tmp_path):
    here.files["me/mine"] = {"model.safetensors": b"", "../config.json": b"{}"}
    hub.download("me/mine", tmp_path / "base")


@fault(
    "a damaged list of an earlier download",
    "PATH: expected the list of an earlier download, found something else; pull into a new folder",
)
def test_damaged_list(here, tmp_path):
    here.files["me/mine"] = {"model.safetensors": b""}
    hub.download("me/mine", tmp_path / "base")
    (tmp_path / "base" / ".cache" / "huggingface" / "pulled.json").write_text("{}")
    hub.download("me/mine", tmp_path / "base")


@fault("a hub that does not answer", "me/mine: expected a connection to the hub, found ConnectError: TEXT")
def test_no_connection(here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub.download("me/mine", tmp_path / "base")


@fault("a stage that is not finished", "PATH: expected the finished stage sft, found an unfinished one")
def test_unfinished(tmp_path):
    (tmp_path / "run" / "sft" / "checkpoints").mkdir(parents=True)
    shared.describe(Run(recipe(tmp_path), tmp_path / "run"), "sft", "mine")
