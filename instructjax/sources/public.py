"""Reads public sets by name, from a local copy or by download.

    public:webgpt   in a key of `files`, or as --source

The files of a set are in FOLDER/NAME under their own names, or are downloaded there. Their digests are compared with
those in `public_sets.py`; for files that are not pinned there, with those of the first use, which are noted in
FOLDER/NAME/digests.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import urllib.request
from collections.abc import Iterator, Mapping

from etils import epath

from instructjax import files
from instructjax.data import formats, prepared, shapes
from instructjax.errors import ConfigError, DataError, RecordError
from instructjax.records import R
from instructjax.sources.public_sets import SETS, PublicSet

PREFIX = "public:"
_TIMEOUT = 60  # seconds without data
_BLOCK = 2**20  # bytes


def read_all(
    named: str, kind: type[R], names: Mapping[str, str], place: str, folder: epath.PathLike
) -> Iterator[R | RecordError]:
    """Yields the records of files, folders, patterns and public sets, as `formats.read` does.

    Args:
      named: paths and "public:NAME", separated by commas.
      kind: the kind of records.
      names: see `formats.read`; the fields of public sets are known.
      place: the key or flag that names them, for errors.
      folder: see `read`.
    """
    for name in files.split_list(named):
        if name.startswith(PREFIX):
            yield from read(name.removeprefix(PREFIX), kind, place, folder)
        else:
            for path in formats.expand(files.parse(name, place)):
                yield from formats.read(path, kind, names)


def read(name: str, kind: type[R], place: str, folder: epath.PathLike) -> Iterator[R | RecordError]:
    """Yields the records of a public set, with its name as their source; see `formats.read`.

    Args:
      name: one of SETS.
      kind: the kind of records.
      place: the key or flag that names it, for errors.
      folder: the folder of all sets; "" for ~/.cache/instructjax/public.

    Raises:
      ConfigError: there is no such set, or it has no such records.
      DataError: a file is missing and cannot be downloaded, or is another one than expected.
    """
    if name not in SETS:
        raise ConfigError(f"{place}: expected one of {', '.join(SETS)} after {PREFIX}, found {name!r:.100}")
    fields = SETS[name].fields
    if (records := prepared.SET_NAMES[kind]) not in fields:
        raise ConfigError(f"{place}: expected records that {name} has: {', '.join(fields)}; found {records}")
    own = _folder(folder) / name
    mapping = shapes.parse_names(fields[records], place)
    for file in SETS[name].files:
        fetch(SETS[name], file, own)
        for record in formats.read(own / file, kind, mapping):
            yield record if isinstance(record, RecordError) else dataclasses.replace(record, source=name)


def fetch(public: PublicSet, file: str, folder: epath.Path) -> None:
    """Downloads a file of a set unless it exists, and checks its digest.

    Args:
      public: the set.
      file: one of its files.
      folder: of this set.

    Raises:
      DataError: the file cannot be downloaded, or its digest is another one.
    """
    path, url = folder / file, public.url + file
    known = folder / "digests.json"
    noted = files.read_json(known) if known.exists() else {}
    expected = public.files[file] or noted.get(file, "")
    is_there = path.exists()
    found = path if is_there else _download(url, path)
    digest = _digest(found, expected.partition(":")[0] or "sha256")
    if expected and digest != expected:
        if not is_there:
            found.unlink()
        raise DataError(f"{path}: expected {expected}, found {digest}: another file than that of {url}")
    if not is_there:
        found.rename(path)
        print(f"{path}: downloaded; {public.citation}; license: {public.license}")
    if not expected:
        files.write_json(known, noted | {file: digest})


def _folder(folder: epath.PathLike) -> epath.Path:
    if os.fspath(folder):
        return files.parse(folder, "the folder of public sets", schemes=())
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "instructjax" / "public"


def _download(url: str, path: epath.Path) -> epath.Path:
    """Downloads a file next to the path that it will have."""
    unfinished = path.parent / f".{path.name}.unfinished"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, unfinished.open("wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
    except OSError as error:  # URLError and timeouts are OSErrors
        unfinished.unlink(missing_ok=True)
        raise DataError(
            f"{path}: expected this file, or the internet to download it from {url}, found neither: "
            f"{files.describe_error(error)}"
        ) from None
    return unfinished


def _digest(path: epath.Path, kind: str) -> str:
    """Returns "sha256:..." or the id that Git gives to the content, "git:..."."""
    sha = hashlib.sha1(f"blob {path.stat().length}\0".encode()) if kind == "git" else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return f"{kind}:{sha.hexdigest()}"
