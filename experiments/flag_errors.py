"""Errors of one line for flags and recipes that cannot be read."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence

from absl import flags

from instructjax.recipe import declared


def keys_in(given: Sequence[str]) -> list[str]:
    """Returns the keys of the recipe that these arguments set, such as "evaluate.temperature"."""
    return re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(given), re.MULTILINE)


def wrong_value(error: flags.Error, given: Sequence[str]) -> str:
    """Returns the error text for a flag that Absl cannot parse: what a declared key expects, or else Absl's words."""
    found, declarations = one_line(error), dict(declared.declared_keys())
    for argument in reversed(given):
        name, _, value = argument.partition("=")
        key = name.lstrip("-").removeprefix("config.")
        if found.startswith(f"flag --config.{key}=") and key in declarations:
            return f"{key}: expected {declarations[key].range.expected}, found {value[:80]!r}"
    return found


def unknown_key(error: Exception, given: Sequence[str]) -> str:
    """Returns the error text for an unknown key, given on the command line or in the recipe's file."""
    found = one_line(error)
    if "get_config" in str(error):
        return f"--config: expected get_config(), found {found}"
    if "Traceback" not in str(error):  # the key is on the command line
        keys = keys_in(given)
        names = {name for name, _ in declared.declared_keys()}
        for key in keys:
            if key not in names and ("." not in key or key.partition(".")[0] in declared.SECTIONS):
                return declared.unknown(key)
        for key in keys:
            if (section := key.partition(".")[0]) in declared.OPTIONAL and f"'{section}'" in found:
                return f"{key}: expected a recipe with a section {section}, found one without"
    for old in declared.RENAMED:
        if re.search(rf"[\"']{old.rpartition('.')[2]}[\"']", found):
            return declared.unknown(old)
    found = found.partition(" Other fields present")[0].removesuffix(".")
    return f"--config: expected keys that the recipe declares, found {found}"


def place(error: Exception) -> str:
    """Returns FILE:LINE of the program that failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def one_line(error: BaseException) -> str:
    """Returns an error's message as one line. From a traceback in the message, takes only the error."""
    text = error.msg if isinstance(error, SyntaxError) else error
    while isinstance(text, BaseException):
        text = text.args[0] if text.args else type(text).__name__
    text = str(text)
    if "Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if unset := re.search("NoneType'> of field (\\S+) is not supported", text):
        return f"flag --{unset[1]}: expected a key with a value, found None, which only a recipe file can replace"
    if required := re.search("Flag --(\\S+) must have a value other than None", text):
        return f"--{required[1]}: expected a value, found none"
    return " ".join(text.split())[:300]
