"""Buckets for tests: in memory, or on a fake server that is asked through gcsfs."""

import contextlib
import datetime
import importlib
import importlib.util

import pytest
from etils.epath import backend
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from instructjax import files
from tests import fake_gcs

BUCKET = "bucket"
_KINDS = importlib.import_module("fsspec.registry")._registry  # file systems by protocol, without those not yet used
HAS_GCSFS = importlib.util.find_spec("gcsfs") is not None


class _File(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.objects[self.path][start:end]

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.objects[self.path] = b"".join(self.parts)
            self.fs.writes.append(self.path)
        return True


class MemoryBucket(AbstractFileSystem):
    """A bucket in memory with the limits of a real one: objects are written whole, and there are no folders."""

    protocol = ("gs", "gcs")
    objects: dict[str, bytes] = {}
    writes: list[str] = []

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        if path in self.objects:
            return [self._described(path)] if detail else [path]
        inside = [name.removeprefix(path + "/") for name in self.objects if name.startswith(path + "/")]
        if not inside and path != BUCKET:
            raise FileNotFoundError(path)
        names = sorted({f"{path}/{name.partition('/')[0]}" for name in inside})
        return [self._described(name) if detail else name for name in names]

    def _described(self, name):
        if name not in self.objects:
            return {"name": name, "size": 0, "type": "directory"}
        return {"name": name, "size": len(self.objects[name]), "type": "file", "mtime": datetime.datetime.now()}

    def info(self, path, **_):
        path = self._strip_protocol(path)
        self.ls(path)
        return self._described(path)

    def _open(self, path, mode="rb", block_size=None, **_):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"a bucket has no mode {mode}")
        return _File(self, path, mode, block_size or 2**16, cache_type="readahead")

    def rm_file(self, path):
        self.objects.pop(self._strip_protocol(path), None)  # None: fsspec also removes folders, which do not exist

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def cp_file(self, *_, **__):
        raise NotImplementedError("a bucket copies objects, which no code of ours should need")

    mv = rename = cp_file


@contextlib.contextmanager
def in_memory():
    """Replaces gs:// by an empty bucket in memory, whose contents are in `MemoryBucket`."""
    MemoryBucket.objects, MemoryBucket.writes = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PACKAGES", {"gs": ("fsspec", "gcs")})
        for name in MemoryBucket.protocol:
            patch.setitem(_KINDS, name, MemoryBucket)
        with _forgotten():
            yield


@contextlib.contextmanager
def on_a_server():
    """Replaces the server of gs:// by a fake one, and yields its Store."""
    with fake_gcs.serving(BUCKET) as (store, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with _forgotten():
            yield store


@contextlib.contextmanager
def _forgotten():
    """Clears what etils and fsspec remember of file systems, before and after."""
    _forget()
    try:
        yield
    finally:
        _forget()


def _forget():
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    for name in MemoryBucket.protocol:
        if (kind := _KINDS.get(name)) is not None:
            kind.clear_instance_cache()
