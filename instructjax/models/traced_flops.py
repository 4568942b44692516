"""Counts the matmuls that a traced program executes; flops.py has the formulas of what the mathematics needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count_matmul_flops(closed: core.ClosedJaxpr, trips: Sequence[float] = ()) -> float:
    """Counts the FLOPs of all matmuls that a traced program executes.

    Matmuls that no output depends on are not counted, because compilers remove them: of a rounded matmul (matmul.py),
    the gradient of an operand that does not learn. The body of a loop is counted once per iteration, and a condition as
    its most expensive branch.

    Args:
      closed: a traced program, from `jax.make_jaxpr` or `jax.jit(f).trace(...).jaxpr`.
      trips: the number of iterations of while-loops, which a program does not contain: first that of
        the outermost loop, then that of the loop within it per outer iteration, and so on; 1 for
        deeper loops. The loop of `sampling.sample` runs at most max_response - 1 times.
    """
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, True)
    return _jaxpr_flops(used, trips)


def _jaxpr_flops(jaxpr: Any, trips: Sequence[float]) -> float:
    return math.fsum(_equation_flops(equation, trips) for equation in jaxpr.eqns)


def _equation_flops(equation: Any, trips: Sequence[float]) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "cond":
        return max(_jaxpr_flops(branch.jaxpr, trips) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    if name == "while" and trips:
        times, *trips = trips
    return times * math.fsum(_jaxpr_flops(inner, trips) for inner in _called_programs(parameters))


def _called_programs(parameters: dict[str, Any]) -> list[Any]:
    """Returns the programs that an equation calls: of a loop, a jitted function, a rematerialized block."""
    values = jax.tree.leaves(list(parameters.values()), is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)))
    return [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in values
        if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
    ]
