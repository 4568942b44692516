"""Uses a Python function of texts as the reward instead of a reward model: a rule, a checker or a judge."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import os
import pathlib
import reprlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from instructjax.errors import ConfigError, RewardFunctionError

# function(prompts, responses) or function(prompts, responses, records) -> a number for each response
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A function of texts that gives rewards.

    Attributes:
      function: returns a number for each response, given lists of prompts and responses.
      name: FILE:NAME, for errors.
      file: the file that defines it; "" if it has none.
      takes_records: whether it has a third parameter `records`.
    """

    function: Function
    name: str
    file: str
    takes_records: bool

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Calls the function once for the whole batch, and checks what it returns.

        Args:
          prompts: texts.
          responses: as many texts.
          records: further fields of the record of each prompt, for functions that take them.

        Returns:
          A finite number of float32 for each response.

        Raises:
          RewardFunctionError: the function raised an error or `SystemExit`, which is the error's cause; or it returned
            something else. The message has one line.
        """
        given: list[Any] = [list(prompts), list(responses)]
        if self.takes_records:
            given.append([dict(record) for record in records])
        try:
            found = self.function(*given)
            scores = list(found) if _is_sized(found) else None
        except BaseException as error:  # a program of the user, which may also call sys.exit
            first = f"; the first response is {_brief(responses[0])}" if responses else ""
            raise self._error(responses, f"{_described(error)}{self._place(error)}{first}") from error
        if scores is None:
            raise self._error(responses, _brief(found))
        if len(scores) != len(responses):
            raise self._error(responses, f"{len(scores)}: {_brief(scores)}")
        return [self._number(score, response) for score, response in zip(scores, responses, strict=True)]

    def _number(self, score: Any, response: str) -> float:
        try:
            is_text = isinstance(score, str | bytes)  # float("7") is not what a judge means by "Score: 7"
            with np.errstate(over="ignore"):
                number = float("nan") if is_text or np.ndim(score) else float(np.float32(float(score)))
        except Exception:  # an array of a device may raise the error of the program that computes it
            number = float("nan")
        if not np.isfinite(number):
            raise RewardFunctionError(
                f"{self.name}: expected a finite number of float32 for the response {_brief(response)}, "
                f"found {_brief(score)}"
            )
        return number

    def _error(self, responses: Sequence[str], found: str) -> RewardFunctionError:
        return RewardFunctionError(
            f"{self.name}: expected a finite number for each of {len(responses)} responses, found {found}"
        )

    def _place(self, error: BaseException) -> str:
        """Returns the last line of the function's file that an error passed through, as " (FILE:LINE)"."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        return f" ({os.path.basename(self.file)}:{frames[-1].lineno})" if frames else ""

    def digest(self) -> str:
        """Returns the start of the SHA-256 of its file; "" if it has none."""
        return hashlib.sha256(pathlib.Path(self.file).read_bytes()).hexdigest()[:16] if self.file else ""


def load(name: str, key: str = "ppo.reward_function") -> RewardFunction:
    """Imports the function MODULE:FUNCTION. Modules in the current folder are found, too.

    Args:
      name: MODULE:FUNCTION.
      key: the config key that has it, for errors.

    Raises:
      ConfigError: it cannot be imported, or is not a function.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{key}: expected MODULE:FUNCTION, found {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        imported = importlib.import_module(module)
        function = getattr(imported, attribute)
    except (Exception, SystemExit) as error:  # the module is a program of the user
        raise ConfigError(f"{key}: expected {name!r} to be found, found: {_described(error)}") from error
    if not callable(function):
        raise ConfigError(f"{key}: expected a function, found {name} = {_brief(function)}")
    file = _file(function) or getattr(imported, "__file__", None) or ""
    path = pathlib.Path(file)
    shown = path.relative_to(pathlib.Path.cwd()) if path.is_relative_to(pathlib.Path.cwd()) else path
    return RewardFunction(function, f"{shown if file else module}:{attribute}", file, _takes_records(function))


def _file(function: Function) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a builtin, or an object that can be called
        return None


def _takes_records(function: Function) -> bool:
    try:
        return list(inspect.signature(function).parameters)[2:3] == ["records"]
    except ValueError:  # a builtin without a signature
        return False


def _is_sized(found: Any) -> bool:
    return hasattr(found, "__len__") and not isinstance(found, str | bytes | Mapping | Set) and np.ndim(found) > 0


def _described(error: BaseException) -> str:
    """Returns an error as one short line."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r:.100})"
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _brief(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())[:100]
