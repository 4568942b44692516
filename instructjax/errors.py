"""The errors a user can cause and mend.

Every message is one line that names the place (file and line, field, flag or
config key), what was expected there, and what was found. The scripts print the
message without a traceback and leave with exit code 2.
"""


class InputError(ValueError):
    """Something the user gave does not fit. The base of all errors below."""

    def __init__(self, message: str):
        """Takes the message, which stays one line: what cannot be printed in it is written as an escape."""
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in message))


class RecordError(InputError):
    """A line of a data file is not a valid record."""


class DataError(InputError):
    """A prepared data set is missing, empty, or does not fit the model."""


class TokenizerError(InputError):
    """A tokenizer cannot be trained or read, or is not the checkpoint's."""


class ConfigError(InputError):
    """A config key is unknown, or its value is impossible."""


class CheckpointError(InputError):
    """A checkpoint is missing, or does not fit the model that should load it."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was saved: a file of it is missing, cut or changed."""


class WorkdirError(InputError):
    """The folder of a run cannot be written to, another run holds it, or a file in it is damaged."""


class RunError(Exception):
    """A run went wrong by itself and was stopped before it saved anything of it. The base of the two below."""


class InvariantError(RunError):
    """Something that must hold in every run does not: a bug, or numbers that ran away."""


class DivergenceError(RunError):
    """Training ran away: a limit of the recipe's section `guards` is reached."""
