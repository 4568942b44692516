"""Reads and writes model folders in the format of Hugging Face: config.json and safetensors files. Reads GGUF files.

Pickle files (.bin, .pt) can run code when they are read, so they are rejected.
"""

from __future__ import annotations

import functools
import json
import re
import reprlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from instructjax.errors import CheckpointError
from instructjax.files import is_bucket, write_bytes
from instructjax.models import gguf
from instructjax.models.tensors import FileTensor
from instructjax.typing import AnyArray

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GGUF = ".gguf"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Types of tensors by their names in a safetensors file. Only floats are imported; an error names the others.
_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    **{f"{kind}{bits}": f"{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": np.bool_,
}


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """Reads the config.json of a folder, or the metadata of a GGUF file.

    Raises:
      CheckpointError: there is no such folder, or the file does not hold a JSON object.
    """
    folder = epath.Path(folder)
    if folder.suffix == GGUF:
        return gguf.read_config(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "none"
        raise CheckpointError(f"{folder}: expected the folder of a model, found {found}")
    return _json(folder / "config.json")


def read_license(folder: epath.PathLike) -> str:
    """Reads the identifier of the license of a model, such as "apache-2.0"; "" if it names none.

    It is `license` in the front matter of the folder's README.md, or `general.license` in a GGUF file.
    """
    folder = epath.Path(folder)
    if folder.suffix == GGUF:
        return gguf.read_license(folder)
    card = folder / "README.md"
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text(), re.DOTALL) if card.is_file() else None
    named = re.search(r"^license:[ \t]*[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return named[1] if named else ""


def read_tensors(folder: epath.PathLike) -> dict[str, FileTensor]:
    """Opens all tensors of a folder, in one file or in the files that an index names, or those of a GGUF file.

    A tensor on a disk is read when its values are needed. A file in a bucket is read now, and held in memory.

    Raises:
      CheckpointError: a file is missing, is not a safetensors file, or is a pickle.
    """
    folder = epath.Path(folder)
    if folder.suffix == GGUF:
        return gguf.read_tensors(folder)
    if (folder / INDEX).is_file():
        files = _indexed(folder / INDEX)
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        also = f"{', '.join(pickles)}, which is a pickle and can run code: convert it first" if pickles else "none"
        raise CheckpointError(f"{folder}: expected {WEIGHTS} or {INDEX}, found {also}")
    package = _safetensors()
    tensors: dict[str, FileTensor] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{folder}: expected {file}, which {INDEX} names, found no such file")
        try:
            tensors |= _held(package, path) if is_bucket(folder) else _opened(package, path)
        except Exception as error:  # the package's own class, and others for types that it does not know
            raise CheckpointError(f"{path}: expected a safetensors file, found {_brief(error)}") from None
    return tensors


def _opened(package: Any, path: epath.Path) -> dict[str, FileTensor]:
    """Returns the tensors of a file on a disk. The package checks the header; it maps the file, and reads no tensor."""
    file = package.safe_open(str(path), framework="numpy")
    tensors = {}
    for name in file.keys():
        view = file.get_slice(name)
        dtype = _dtype(name, view.get_dtype())
        tensors[name] = FileTensor(tuple(view.get_shape()), dtype, functools.partial(file.get_tensor, name))
    return tensors


def _held(package: Any, path: epath.Path) -> dict[str, FileTensor]:
    """Returns the tensors of a file in a bucket."""
    tensors = {}
    for name, entry in package.deserialize(path.read_bytes()):
        dtype, shape = _dtype(name, entry["dtype"]), tuple(entry["shape"])
        values = np.frombuffer(entry["data"], dtype).reshape(shape)
        tensors[name] = FileTensor(shape, dtype, functools.partial(np.asarray, values))
    return tensors


def _dtype(name: str, code: str) -> np.dtype:
    """Returns the type of a tensor; raises ValueError if NumPy has none."""
    if code not in _DTYPES:
        raise ValueError(f"{name:.100} of type {code:.20}")
    return np.dtype(_DTYPES[code])


def write(
    folder: epath.PathLike, described: Mapping[str, Any], tensors: Mapping[str, AnyArray], files: Mapping[str, bytes]
) -> None:
    """Writes a folder atomically. In a bucket, which cannot rename, config.json is written last.

    Files that an earlier try has left in a bucket without config.json are replaced.

    Args:
      folder: is created; if it exists, it must be empty.
      described: the config.json, from `huggingface.describe`.
      tensors: from `huggingface.tensors_of`.
      files: other files by name, such as the tokenizer's. A name may have a folder, as in LICENSES/MIT.txt.

    Raises:
      CheckpointError: the folder is not empty.
    """
    folder = epath.Path(folder)
    left = {WEIGHTS, *files} if is_bucket(folder) else set()
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {""} if folder.exists() else set()
    if found - left:
        raise CheckpointError(
            f"{folder}: expected no folder, or an empty one, to write the model to, found other files"
        )
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    config = json.dumps(dict(described), indent=2) + "\n"
    if is_bucket(folder):
        weights = _safetensors().numpy.save(arrays, metadata={"format": "pt"})
        for name, content in {WEIGHTS: weights, **files, "config.json": config.encode()}.items():
            write_bytes(folder / name, content)
        return
    unfinished = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _safetensors().numpy.save_file(arrays, str(unfinished / WEIGHTS), metadata={"format": "pt"})
    (unfinished / "config.json").write_text(config)
    for name, content in files.items():
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).write_bytes(content)
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)


def _indexed(path: epath.Path) -> list[str]:
    """Returns the files that an index names; all must be in its own folder."""
    places = _json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path}: weight_map: expected a file for each tensor, found {reprlib.repr(places)}")
    for file in places.values():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]{1,200}\.safetensors", file):
            raise CheckpointError(f"{path}: expected names of safetensors files, found {reprlib.repr(file)}")
    return sorted(set(places.values()))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: expected {path.name}, found no such file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found {_brief(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise CheckpointError(
            "expected the package safetensors to read and write weights, found none; "
            "pip install 'instructjax[huggingface]'"
        ) from None
    return safetensors
