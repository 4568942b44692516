"""An error that is described in one process and rebuilt in another ends both in the same way."""

import errno
import os

import pytest

from instructjax.errors import DamagedCheckpointError, DivergenceError, InputError, Interrupted
from instructjax.runs import failures


class _JudgeError(InputError):
    """Of a module that the other process need not know."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("x: expected 1, found 2"), InputError, "process 3: x: expected 1, found 2"),
        (DamagedCheckpointError("cut"), DamagedCheckpointError, "process 3: cut"),
        (_JudgeError("no answer"), InputError, "process 3: no answer"),
        (DivergenceError("too far"), DivergenceError, "process 3: too far"),
        (Interrupted("evaluate: stopped by SIGTERM"), Interrupted, "evaluate: stopped by SIGTERM"),
        (MemoryError(), MemoryError, "process 3: "),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError, "process 3: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), OSError, "process 3: /a: Permission denied"),
        (OSError("odd"), OSError, "process 3: odd"),
        (KeyError("k"), RuntimeError, "process 3: KeyError: 'k'"),
        (KeyboardInterrupt(), RuntimeError, "process 3: KeyboardInterrupt: "),
    ],
)
def test_kind_and_message(error, kind, message):
    found = failures.rebuild(failures.describe(error), 3)
    assert type(found) is kind and str(found) == message
