"""Uploads and downloads folders of models through the client of a model hub. Only this module imports the client."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from instructjax.errors import InputError, show

# What is downloaded: files that `models/pretrained.py` and `text/tokenizer_files.py` read, the card and the license.
# Pickle files are left out, because they can run code when they are read.
PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.json", "*.jinja", "*.model", "merges.txt")
PAPERS = ("README.md", "LICENSE*", "NOTICE*")


def create(repo: str, *, is_public: bool) -> None:
    """Creates a repository, unless it exists, which shows before any other work that one may write to it.

    Args:
      repo: OWNER/NAME.
      is_public: whether everybody may read a new repository. An existing one stays as it is.

    Raises:
      InputError: the package or a token is missing, or the hub refuses.
    """
    package = _package()
    _check_name(repo)
    if not package.get_token():
        raise InputError(
            "--repo: expected a token of the hub, in HF_TOKEN or saved by 'hf auth login', found none; --output alone "
            "writes the folder without it"
        )
    with _explained(repo):
        package.HfApi().create_repo(repo, private=not is_public, exist_ok=True)


def upload(folder: epath.PathLike, repo: str, message: str) -> str:
    """Uploads all files of a folder in one commit, and returns its address.

    Raises:
      InputError: the hub refuses, or cannot be reached.
    """
    with _explained(repo):
        commit = _package().HfApi().upload_folder(repo_id=repo, folder_path=os.fspath(folder), commit_message=message)
    return str(commit.commit_url)


def download(repo: str, folder: epath.PathLike, revision: str | None = None) -> list[str]:
    """Downloads the model of a repository: weights, tokenizer, card and license, but no pickle files.

    After the download, removes files of an earlier one that this revision does not have. Other files stay. After an
    interrupted download, the folder mixes both until a call succeeds.

    Args:
      repo: OWNER/NAME.
      folder: a local folder that is new or empty, or into which an earlier call has downloaded this repository.
      revision: a branch, tag or commit; None for the newest commit of the main branch.

    Returns:
      The names of the files, sorted.

    Raises:
      InputError: the folder has other files or another repository, or the repository or revision does not exist, may
        not be read or has names that point outside the folder.
    """
    package, folder = _package(), epath.Path(folder)
    _check_name(repo)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    record = folder / ".cache" / "huggingface" / "pulled.json"  # in the client's own folder, which it never uploads
    found, earlier = _read(record)
    if folder.is_dir() and any(folder.iterdir()) and found != repo:
        raise InputError(f"{folder}: expected no folder, an empty one or one with {repo}, found {found}")
    with _explained(repo, revision):
        api = package.HfApi()
        info = api.repo_info(repo, revision=revision, files_metadata=False)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = sorted(package.utils.filter_repo_objects(names, allow_patterns=[*PATTERNS, *PAPERS]))
        if not any(name.endswith((".safetensors", ".gguf")) for name in wanted):
            raise InputError(f"{repo}: expected safetensors or GGUF files, found {show(', '.join(names) or 'none')}")
        for name in wanted:
            if not _is_inside(name):
                raise InputError(
                    f"{repo}: expected names of files inside the folder, found {show(name)}; pull another revision"
                )
        kept = {name.casefold() for name in wanted}  # some disks do not tell LICENSE.TXT from LICENSE.txt
        old = [name for name in earlier if name.casefold() not in kept]
        record.parent.mkdir(parents=True, exist_ok=True)
        _write(record, repo, [*wanted, *old])  # a download that stops leaves both
        api.snapshot_download(repo, revision=info.sha, local_dir=os.fspath(folder), allow_patterns=wanted)
    for name in old:
        (folder / name).unlink(missing_ok=True)
    _write(record, repo, wanted)
    return wanted


def _read(record: epath.Path) -> tuple[str, list[str]]:
    """Returns the repository of an earlier download and the names of its files, or "other files" and none.

    Raises:
      InputError: the record is damaged, or has names that point outside the folder, which must not be removed.
    """
    if not record.exists():
        return "other files", []
    try:
        found = json.loads(record.read_text())
        repo, names = found["repository"], found["files"]
    except (ValueError, KeyError, TypeError):
        repo, names = None, []
    if not isinstance(repo, str) or not isinstance(names, list) or not all(map(_is_inside, names)):
        raise InputError(
            f"{record}: expected the list of an earlier download, found something else; pull into a new folder"
        )
    return repo, names


def _write(record: epath.Path, repo: str, names: Sequence[str]) -> None:
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({"repository": repo, "files": names}))
    partial.replace(record)


def _is_inside(name: Any) -> bool:
    """Returns whether a name is of a file in a folder, and not in the client's own folder there."""
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [""]
    return parts[0] not in ("", ".cache") and ":" not in parts[0] and ".." not in parts


def _check_name(repo: str) -> None:
    package = _package()
    try:
        package.utils.validate_repo_id(repo)
        if repo.count("/") != 1:
            raise package.errors.HFValidationError
    except package.errors.HFValidationError:
        raise InputError(f"--repo: expected a repository, OWNER/NAME, found {show(repo)}") from None


@contextlib.contextmanager
def _explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns the client's errors into errors of one line."""
    errors = _package().errors
    try:
        yield
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{repo}: expected the revision {show(revision)}, found no such branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:  # the hub does not tell private repositories from missing ones
        raise InputError(
            f"{repo}: expected a repository that you may read, found none; check its name and HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        expected = {401: "a valid token", 403: "a token that may write here"}.get(code, "the hub to answer")
        found = " ".join((error.server_message or str(error)).split())[:200]
        raise InputError(f"{repo}: expected {expected}, found {code}: {found}") from None
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        found = " ".join(str(error).split())[:200]
        raise InputError(f"{repo}: expected a connection to the hub, found {type(error).__name__}: {found}") from None


def _package() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise InputError("expected the package huggingface_hub, found none; pip install 'instructjax[hub]'") from None
    return huggingface_hub
