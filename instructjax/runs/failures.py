"""Errors as texts: a process sends its error to the others, and all of them then end in the same way."""

from __future__ import annotations

import json

from instructjax import errors
from instructjax.errors import Interrupted

# What a script ends with in one line, each with an exit code of its own. Any other error is a bug.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
} | {kind.__name__: kind for kind in (OSError, MemoryError)}


def describe(error: BaseException) -> str:
    """Returns the kind and the message of an error, as JSON for `rebuild`."""
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS), None)
    if kind is None:
        return json.dumps([RuntimeError.__name__, f"{type(error).__name__}: {error}"])
    if isinstance(error, OSError) and error.strerror:
        return json.dumps([kind, f"{error.filename}: {error.strerror}" if error.filename else error.strerror])
    return json.dumps([kind, str(error)])


def rebuild(described: str, process: int) -> Exception:
    """Returns an error like the one that a process described.

    Args:
      described: what `describe` returned there.
      process: its number, which the message begins with, unless the error is Interrupted.

    Returns:
      An error of the same class of `errors.py`, an OSError or a MemoryError; a RuntimeError for any other.
    """
    name, message = json.loads(described)
    kind = _KINDS.get(name, RuntimeError)
    return kind(message if kind is Interrupted else f"process {process}: {message}")
