"""Errors that a user can cause and fix, and errors that stop a run.

The message of an `InputError` is one line. It names the place (file and line,
field, flag or config key), what was expected there, and what was found. The scripts
print it without a traceback and exit with code 2.
"""

from __future__ import annotations

import reprlib
from typing import Any

_BRIEF = reprlib.Repr()  # bounded in depth and length, so that no value is too large to show


def show(value: Any) -> str:
    """Returns a value for an error, in at most 60 characters."""
    text = ascii(value) if isinstance(value, str) else _BRIEF.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class InputError(ValueError):
    """An input is missing or invalid. The base class of the errors below, up to `WorkdirError`."""

    def __init__(self, message: str):
        """Takes the message and keeps it on one line: unprintable characters are escaped."""
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in message))


class RecordError(InputError):
    """A line of a data file is not a valid record."""


class DataError(InputError):
    """A prepared data set is missing, empty, or does not fit the model."""


class SampleSizeError(DataError):
    """There are too few values for an interval."""


class TokenizerError(InputError):
    """A tokenizer cannot be trained or read, or is not the checkpoint's."""


class ConfigError(InputError):
    """A config key is unknown, or its value is not allowed."""


class CheckpointError(InputError):
    """A checkpoint is missing, or does not fit the model that loads it."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was saved: one of its files is missing, truncated or changed."""


class RewardFunctionError(InputError):
    """A reward function failed, or did not return a finite number for each response."""


class WorkdirError(InputError):
    """The folder of a run is not writable, is in use by another run, or holds a damaged file."""


class RunError(Exception):
    """A run went wrong and was stopped before it saved the bad state. The base class of the two below."""


class InvariantError(RunError):
    """Something that must hold in every run does not hold: a bug, or diverging numbers."""


class DivergenceError(RunError):
    """Training diverged: a limit in the recipe's section `guards` was reached."""


class Interrupted(Exception):
    """A run stopped because it was asked to. It continues when it is started again."""
