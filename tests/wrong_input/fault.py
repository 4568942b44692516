"""One thing that can be wrong, the test that provokes it, and its row in docs/errors.md."""

import dataclasses
import functools
import re

import command_line
import pytest

from instructjax.errors import InputError
from tests.scripts import Left, end_of

# What stands for what differs from case to case, in the messages here and on the page.
PLACEHOLDERS = {
    "PATH": r"\S+",
    "N": r"-?[\d.e+-]+",
    "HASH": r"[0-9a-f]{8,}",
    "TEXT": r".+",
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the page.

    Attributes:
      wrong: what is wrong.
      message: what is printed behind "error: ", with placeholders.
    """

    wrong: str
    message: str

    @property
    def pattern(self):
        """Matches the messages that the row stands for."""
        parts = re.split(rf"\b({'|'.join(PLACEHOLDERS)})\b", self.message)
        return "".join(PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))


def fault(wrong, message):
    """Makes a test of a function that does something wrong: a script must end with this line, and with 2."""

    def decorate(provoke):
        @functools.wraps(provoke)
        def test(*arguments, **named):
            with pytest.raises((InputError, Left)) as caught:
                provoke(*arguments, **named)
            left = caught.value if isinstance(caught.value, Left) else _in_a_script(caught.value)
            assert left.code == 2, left
            (line,) = (line for line in str(left).split("\n") if line and not line.startswith("\r"))  # a progress bar
            found = line.removeprefix("error: ")
            assert line != found and re.fullmatch(test.fault.pattern, found), line

        test.fault = Fault(wrong, message)
        return test

    return decorate


def _in_a_script(error):
    """How a script leaves in which this error is raised."""

    def main(run):
        raise error

    with pytest.raises(Left) as left:
        end_of("script.py", lambda: command_line.read(main), [])
    return left.value
