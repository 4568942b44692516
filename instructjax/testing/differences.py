"""Compares two results, and raises an error that shows the difference and the input."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from instructjax.typing import Tree

LOG = logging.getLogger("instructjax.testing")
ROUNDING = 1024  # allowed difference between two orders of addition, in machine epsilons


def assert_close(
    law: str,
    function: Callable[..., Any],
    change: str,
    found: Tree,
    expected: Tree,
    inputs: Tree,
    *,
    tolerance: float | None = None,
    floor: float = 1.0,
) -> None:
    """Raises AssertionError unless all numbers of two pytrees agree. NaN agrees with nothing.

    Args:
      law: the law that is checked.
      function: the loss, named in the message.
      change: how the input was changed.
      found: the result after the change.
      expected: the result that the law requires.
      inputs: a pytree of arrays, shown in the message.
      tolerance: as a share of the largest number of `expected`; None means 1024 machine epsilons.
      floor: if all numbers are smaller than this, the tolerance is a share of this instead.
    """
    expected_leaves, structure = jax.tree.flatten(expected)
    if (other := jax.tree.structure(found)) != structure:  # type: ignore[operator]
        broken(law, function, change, f"expected {structure}, found {other}", inputs)
    pairs = [
        (jax.tree_util.keystr(path), *_wide(x, y))
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), expected_leaves, strict=True)
    ]
    scale = max([floor, *(float(np.abs(y[np.isfinite(y)]).max(initial=0)) for _, _, y, _ in pairs)])
    largest = 0.0
    for name, x, y, epsilon in pairs:
        if x.shape != y.shape:
            broken(law, function, change, f"result{name}: expected shape {y.shape}, found {x.shape}", inputs)
        allowed = scale * (ROUNDING * epsilon if tolerance is None else tolerance)
        with np.errstate(invalid="ignore"):
            difference = np.where(x == y, 0.0, np.abs(x - y))
        difference = np.where(np.isnan(difference), np.inf, difference)
        if difference.size and (worst := float(difference.max())) > allowed:
            place = np.unravel_index(int(difference.argmax()), difference.shape)
            where = f"result{name}" + (f"[{', '.join(map(str, place))}]" if place else "")
            broken(
                law,
                function,
                change,
                f"{where}: expected {y[place]:.9g}, found {x[place]:.9g}, apart by {worst:.3g} (allowed {allowed:.3g})",
                inputs,
            )
        largest = max(largest, float(difference.max(initial=0)))
    LOG.info("%s: %s: %s: largest difference %.1e of %.1e", law, name_of(function), change, largest, scale)


def broken(law: str, function: Callable[..., Any], change: str, difference: str, inputs: Tree) -> NoReturn:
    """Raises AssertionError with the law, the function, the change, the difference and the input."""
    raise AssertionError(f"{law}: {name_of(function)}: {change}: {difference}{describe(inputs)}")


def describe(inputs: Tree) -> str:
    """Describes every array of a pytree: place, dtype, shape and values. Long arrays are abbreviated."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.extended):
            continue  # a random key
        array = np.asarray(leaf)
        numbers = np.array2string(array, threshold=400, max_line_width=120, separator=", ")
        lines.append(f"\ninput{jax.tree_util.keystr(path)} {array.dtype}{list(array.shape)} =\n{numbers}")
    return "".join(lines)


def name_of(function: Callable[..., Any]) -> str:
    """Returns the name of a function or of a partial function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _wide(found: Any, expected: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Converts both to float64, and returns them with the larger of their machine epsilons."""
    arrays = [np.asarray(x) for x in (found, expected)]
    floating = [x.dtype for x in arrays if jax.dtypes.issubdtype(x.dtype, np.floating)]
    epsilon = max([float(jax.numpy.finfo(dtype).eps) for dtype in floating], default=0.0)
    return arrays[0].astype(np.float64), arrays[1].astype(np.float64), epsilon
