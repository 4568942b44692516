"""The decorator `fault`, which ties an error message to a test that provokes it and to a row of docs/errors.md."""

import dataclasses
import functools
import re

import command_line
import pytest

from instructjax.errors import InputError
from tests.scripts import Left, end_of

# Placeholders in the messages, here and in docs/errors.md, for the parts that vary.
PLACEHOLDERS = {
    "PATH": r"\S+",
    "N": r"-?[\d.e+-]+",
    "HASH": r"[0-9a-f]{8,}",
    "TEXT": r".+",
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of docs/errors.md.

    Attributes:
      wrong: the cause of the error.
      message: the printed line without "error: ", with placeholders.
    """

    wrong: str
    message: str

    @property
    def pattern(self):
        """The regular expression for the messages of this row."""
        parts = re.split(rf"\b({'|'.join(PLACEHOLDERS)})\b", self.message)
        return "".join(PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))


def fault(wrong, message):
    """Turns a function that does something wrong into a test that a script exits with code 2 and prints `message`."""

    def decorate(provoke):
        @functools.wraps(provoke)
        def test(*arguments, **named):
            with pytest.raises((InputError, Left)) as caught:
                provoke(*arguments, **named)
            left = caught.value if isinstance(caught.value, Left) else _exit_of_script(caught.value)
            assert left.code == 2, left
            (line,) = (
                line for line in str(left).split("\n") if line and not line.startswith("\r")
            )  # skip progress bars
            found = line.removeprefix("error: ")
            assert line != found and re.fullmatch(test.fault.pattern, found), line

        test.fault = Fault(wrong, message)
        return test

    return decorate


def _exit_of_script(error):
    """Returns the exit of a script that raises this error."""

    def main(run):
        raise error

    with pytest.raises(Left) as left:
        end_of("script.py", lambda: command_line.read(main), [])
    return left.value
