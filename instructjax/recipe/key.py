"""Declares the keys of a recipe: value in the paper, range, unit, meaning and source."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

Value = bool | int | float | str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a key may have, independent of all other keys.

    Attributes:
      expected: the values in words, for errors and docs/recipe.md.
      contains: returns whether a value is one of them.
    """

    expected: str
    contains: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
      value: the paper's value for 1.3B, or the default if the paper does not have the key.
      range: the allowed values.
      unit: "" if it has none.
      meaning: a phrase, with the paper's symbol if there is one.
      source: where the value comes from. "C.4" is appendix C.4 of the paper. "silent" means that the paper needs such
        a value and does not give it. "" means that the key describes this program or its data, not the paper.
    """

    value: Value
    range: Range
    unit: str
    meaning: str
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a recipe.

    Attributes:
      about: a description of one line.
      keys: the keys by name, in the order in which they are shown.
    """

    about: str
    keys: Mapping[str, Key]


def section(about: str, /, **keys: Key) -> Section:
    """Builds a section with these keys."""
    return Section(about, types.MappingProxyType(keys))


def one_of(*choices: str) -> Range:
    """Returns a range that consists of these texts."""
    return Range(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def empty_or_one_of(*choices: str) -> Range:
    """Returns a range that consists of these texts and ""."""
    return Range(f'"" or one of {", ".join(choices)}', lambda value: isinstance(value, str) and value in ("", *choices))


def some_of(*choices: str) -> Range:
    """Returns a range that consists of the lists of different texts from these."""
    return Range(
        f"a list from {', '.join(choices)}",
        lambda value: NAMES.contains(value) and len({*value}) == len(value) and {*value} <= {*choices},
    )


def integers(expected: str, least: int, most: int = 2**31 - 1) -> Range:
    """Returns the range of the integers from `least` to `most`."""
    return Range(expected, lambda value: _is_integer(value) and least <= value <= most)


def numbers(expected: str, accepts: Callable[[float], bool]) -> Range:
    """Returns the range of the finite numbers, integers included, that a predicate accepts."""
    return Range(expected, lambda value: _is_number(value) and accepts(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_infinity(value: Any) -> bool:
    return isinstance(value, float) and value == math.inf


SEED = integers("an integer from 0 to 2**32 - 2", 0, 2**32 - 2)
INTEGER_FROM_1 = integers("an integer, at least 1", 1)
INTEGER_FROM_2 = integers("an integer, at least 2", 2)
INTEGER_FROM_0 = integers("an integer, at least 0", 0)
INTEGER_OR_REST = Range(
    "an integer, at least 1, or -1", lambda value: INTEGER_FROM_1.contains(value) or _is_integer(value) and value == -1
)
INTEGER_OR_NONE = Range("None or an integer, at least 1", lambda value: value is None or INTEGER_FROM_1.contains(value))
POSITIVE = numbers("more than 0", lambda value: value > 0)
POSITIVE_OR_NONE = Range("None or more than 0", lambda value: value is None or POSITIVE.contains(value))
AT_LEAST_0 = numbers("at least 0", lambda value: value >= 0)
AT_LEAST_0_OR_INFINITY = Range(
    "at least 0, or infinity", lambda value: _is_infinity(value) or AT_LEAST_0.contains(value)
)
POSITIVE_OR_INFINITY = Range("more than 0, or infinity", lambda value: _is_infinity(value) or POSITIVE.contains(value))
BELOW_1 = numbers("from 0 to below 1", lambda value: 0 <= value < 1)
ABOVE_0_UP_TO_1 = numbers("more than 0, at most 1", lambda value: 0 < value <= 1)
UP_TO_1 = numbers("from 0 to 1", lambda value: 0 <= value <= 1)
TRUE_OR_FALSE = Range("True or False", lambda value: isinstance(value, bool))
TEXT = Range("text", lambda value: isinstance(value, str) and "\0" not in value)
NAMES = Range(
    "a list of names",
    lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value),
)
