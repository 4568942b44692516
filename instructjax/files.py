"""Atomic writes: a file is written whole or not at all. Also reads and writes JSON objects.

A file is written under a temporary name in the same folder and then renamed. So a reader finds the old content or
the new content, never a part, even after a run was killed.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from instructjax.errors import WorkdirError


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a file atomically. Its folder must exist."""
    path = epath.Path(path)
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
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise WorkdirError(f"{path}: expected a file that a run wrote, found: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path}: expected JSON that a run wrote, found {error}") from None
    if not isinstance(found, dict):
        raise WorkdirError(f"{path}: expected a JSON object that a run wrote, found {type(found).__name__}")
    return found
