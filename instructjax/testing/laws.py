"""Laws that a loss must satisfy. Each is a function that raises AssertionError if the loss violates it.

The message names the law, the loss, the change of the input, the difference of the results, and
the input. There is a section for each of the two kinds of losses:

  equations   `loss(*arrays, mask)`, as in `losses.py`. It returns a pair (sum, weight), a pair and
              metrics, or arrays that are 0 where the mask is 0. Laws compute in float64.
  objectives  `loss(params, batch, key) -> ((sum, weight), metrics)`, as for `training.step`,
              without dropout. Laws compare the mean loss and its gradient, in float64 if the
              parameters are float64.

Bind other arguments with `functools.partial`. A law compiles a function once and caches it, so
pass the same function each time, not a new lambda. Differences within the tolerance are logged
to "instructjax.testing"; `pytest --log-cli-level=INFO` prints them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import losses
from instructjax.testing import rewriting
from instructjax.testing.differences import assert_close, broken, name_of
from instructjax.training.metrics import Maximum, Mean
from instructjax.training.step import Loss, summed_gradient
from instructjax.typing import AnyArray, Params, Tree

Equation = Callable[..., Any]
Arrays = Sequence[AnyArray]

JUNK = (1e9, np.nan, np.inf, -np.inf)
CUTS = ((2, 1), (1, 2), (2, 2))  # (microbatches, devices)
DIRECTIONS, STEP = 4, 1e-5  # of finite differences


# Equations: loss(*arrays, mask).


def agrees_with(function: Equation, loop: Equation, inputs: Arrays, *, tolerance: float = 1e-11) -> None:
    """Checks that a function returns the same as a slow loop, in float64.

    Args:
      function: an equation in JAX.
      loop: the same equation in Python, one number at a time. Returns the same numbers in the same order.
      inputs: the arguments of both.
      tolerance: as a share of the largest number of the result, but at least of 1.
    """
    inputs = _in_float64(inputs)
    expected = loop(*inputs)
    with jax.enable_x64(True):
        found = _compiled(function)(*inputs)
    numbers, leaves, change = jax.tree.leaves(expected), jax.tree.leaves(found), f"next to {name_of(loop)}"
    if len(numbers) != len(leaves):
        broken("agrees_with", function, change, f"expected {len(numbers)} results, found {len(leaves)}", inputs)
    assert_close("agrees_with", function, change, leaves, numbers, inputs, tolerance=tolerance)


def permutation_of_answers(loss: Equation, rankings: Arrays) -> None:
    """Checks that the order of the answers does not matter.

    Tries one swap and one rotation, which generate all permutations.

    Args:
      loss: a function of (rewards, scores, valid).
      rankings: its arguments, [B, K, ...] each.
    """
    rankings = _in_float64(rankings)
    with jax.enable_x64(True):
        expected = _compiled(loss)(*rankings)
        for name, order in _permutations(rankings[0].shape[1]):
            found = _compiled(loss)(*(x[:, order] for x in rankings))
            assert_close(
                "permutation_of_answers", loss, f"answers in another order ({name})", found, expected, rankings
            )


def shift_of_rewards(loss: Equation, rankings: Arrays) -> None:
    """Checks that a constant added to all rewards of a prompt does not matter.

    Args:
      loss: a function of (rewards, scores, valid).
      rankings: its arguments; the rewards [B, K] come first.
    """
    rewards, *rest = rankings = _in_float64(rankings)
    shift = np.linspace(-3.0, 5.0, len(rewards))[:, None]
    with jax.enable_x64(True):
        expected, found = _compiled(loss)(*rankings), _compiled(loss)(rewards + shift, *rest)
    assert_close("shift_of_rewards", loss, "a constant added to the rewards of a prompt", found, expected, rankings)


def order_of_scores(loss: Equation, rankings: Arrays) -> None:
    """Checks that of a prompt's scores only their order and their ties matter.

    Args:
      loss: a function of (rewards, scores, valid).
      rankings: its arguments; the scores [B, K] come second.
    """
    rewards, scores, *rest = rankings = _in_float64(rankings)
    ranks = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    with jax.enable_x64(True):
        expected = _compiled(loss)(*rankings)
        for name, other in (("their ranks", ranks), ("the squares of their ranks", 7 * ranks**2)):
            found = _compiled(loss)(rewards, other.astype(scores.dtype), *rest)
            assert_close("order_of_scores", loss, f"scores replaced by {name}", found, expected, rankings)


def mask_is_respected(loss: Equation, arrays: Arrays) -> None:
    """Checks that nothing is read where the mask is 0, and that adding such places changes nothing.

    NaN, infinities and 1e9 at these places change no bit of a result or a gradient, and both are 0
    there. Another row and two more columns with mask 0 change nothing up to rounding.

    Args:
      loss: takes the mask last.
      arrays: its arguments. Arrays whose first axes are the mask's are filled with junk where the
        mask is 0; integers and bool with the largest and smallest value of the array.
    """
    *values, mask = arrays = _in_float64(arrays)
    floating = tuple(i for i, x in enumerate(values) if np.issubdtype(x.dtype, np.floating))
    check = functools.partial(assert_close, "mask_is_respected", loss)
    with jax.enable_x64(True):
        run = _results_and_gradient(loss, floating)
        expected = run(*arrays)
        for junk in JUNK:
            spoiled = [np.where(_over(mask, x) > 0, x, _junk(x, junk)) if _covers(mask, x) else x for x in values]
            check(f"{junk} where the mask is 0", run(*spoiled, mask), expected, arrays, tolerance=0)
        inside = jax.tree.map(lambda x: np.where(_over(mask, x) > 0, x, 0) if _covers(mask, x) else x, expected)
        check("0 where the mask is 0", expected, inside, arrays, tolerance=0)
        wide = run(*(_widened(x, mask) for x in values), _wider(mask, mask.ndim, 0))
    cut = jax.tree.map(lambda x, y: np.asarray(x)[tuple(map(slice, np.shape(y)))], wide, expected)
    check("more rows and columns with mask 0", cut, expected, arrays)


def empty_mask_gives_zeros(loss: Equation, arrays: Arrays) -> None:
    """Checks that with a mask of zeros all results and gradients are 0, not NaN.

    Args:
      loss: takes the mask last.
      arrays: its arguments; the mask gives only its shape and dtype.
    """
    *values, mask = _in_float64(arrays)
    arrays = [*values, np.zeros_like(mask)]
    floating = tuple(i for i, x in enumerate(values) if np.issubdtype(x.dtype, np.floating))
    with jax.enable_x64(True):
        found = _results_and_gradient(loss, floating)(*arrays)
    zeros = jax.tree.map(np.zeros_like, found)
    assert_close("empty_mask_gives_zeros", loss, "mask 0 everywhere", found, zeros, arrays, tolerance=0)


def rows_add_up(loss: Equation, arrays: Arrays) -> None:
    """Checks that the results of single rows add up to the result of all rows.

    A loss that divides fails if the rows have different weights. A `Maximum` is merged by the maximum.

    Args:
      loss: returns pairs (sum, weight) and metrics.
      arrays: its arguments, [B, ...] each.
    """
    arrays = _in_float64(arrays)
    with jax.enable_x64(True):
        expected = _compiled(loss)(*arrays)
        rows = [_compiled(loss)(*(x[b : b + 1] for x in arrays)) for b in range(len(arrays[0]))]
    found = functools.reduce(_merged, rows)
    assert_close("rows_add_up", loss, "the sum over rows", found, expected, arrays)


def devices_agree(function: Equation, arrays: Arrays) -> None:
    """Checks that a batch split into one row per device has the statistics of the whole batch.

    Args:
      function: takes `axis_name`, which is None or the mapped axis over which the rows are split.
        Returns rows, or statistics that are the same on all devices.
      arrays: its arguments, [B, ...] each.
    """
    arrays = _in_float64(arrays)
    with jax.enable_x64(True):
        expected = _compiled(function)(*arrays)
        parts = _mapped(function)(*(x[:, None] for x in arrays))

    def gathered(part: Any, whole: Any) -> np.ndarray:
        return np.asarray(part).reshape(whole.shape) if part.shape[1:] != whole.shape else np.asarray(part)

    found = jax.tree.map(gathered, parts, expected)
    expected = jax.tree.map(lambda x, y: np.broadcast_to(x, y.shape), expected, found)
    assert_close("devices_agree", function, "a row per device", found, expected, arrays)


def gradient_is_finite_difference(loss: Equation, x: Tree, *rest: Any, tolerance: float = 1e-6) -> None:
    """Checks the gradient with respect to the first argument against finite differences, in float64.

    Each array of `x` is moved by 1e-5 along random directions. Choose points away from kinks, for
    example random normal numbers.

    Args:
      loss: `loss(x, *rest)`; returns a sum, a pair (sum, weight), or a pair and metrics.
      x: an array, or a pytree of arrays such as parameters.
      *rest: further arguments, such as a batch and a key.
      tolerance: as a share of the slope, but at least of 1.
    """
    inputs = x, *rest
    x, *rest = _in_float64(inputs)
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(x)
    with jax.enable_x64(True):
        value, gradient = _sum_and_gradient(loss)
        slopes = jax.tree.leaves(gradient(x, *rest))
        for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(x)):
            for _ in range(DIRECTIONS):
                direction = rng.choice([-1.0, 1.0], size=np.shape(leaf))
                ends = []
                for step in (-STEP, STEP):
                    moved = [*leaves[:number], leaf + step * direction, *leaves[number + 1 :]]
                    ends.append(float(value(jax.tree.unflatten(structure, moved), *rest)))
                change = f"slope by the input{jax.tree_util.keystr(path)} along a random direction"
                found, expected = np.sum(slopes[number] * direction), (ends[1] - ends[0]) / (2 * STEP)
                law = "gradient_is_finite_difference"
                assert_close(law, loss, change, found, expected, inputs, tolerance=tolerance)


# Objectives: loss(params, batch, key).


def losses_agree(loss: Loss, other: Loss, params: Params, batch: Any, other_batch: Any = None) -> None:
    """Checks that two losses have the same mean, the same weight and the same gradient.

    Args:
      loss: a loss, such as one of packed rows or one that rematerializes layers.
      other: another way to compute it.
      params: the weights of both.
      batch: the batch for `loss`.
      other_batch: the batch for `other`; None means `batch`.
    """
    expected = _mean(other, params, [batch if other_batch is None else other_batch])
    _same_mean("losses_agree", loss, "next to the other loss", params, [batch], expected)


def parts_add_up(loss: Loss, params: Params, parts: Sequence[Any], batch: Any) -> None:
    """Checks that sums over batches of any sizes, divided once, equal the mean over one batch with all rows.

    Args:
      loss: returns ((sum, weight), metrics).
      params: its weights.
      parts: batches, such as the minibatches of an epoch.
      batch: all of their rows in one batch.
    """
    expected = _mean(loss, params, [batch])
    _same_mean("parts_add_up", loss, f"a batch in {len(parts)} parts", params, parts, expected)


def permutation_of_rows(loss: Loss, params: Params, batch: Any) -> None:
    """Checks that the order of a batch's rows does not matter. Tries one swap and one rotation.

    Args:
      loss: returns ((sum, weight), metrics).
      params: its weights.
      batch: a pytree of arrays [B, ...].
    """
    expected = _mean(loss, params, [batch])
    for name, order in _permutations(len(jax.tree.leaves(batch)[0])):
        permuted = jax.tree.map(lambda x, order=order: x[order], batch)
        _same_mean("permutation_of_rows", loss, f"rows in another order ({name})", params, [permuted], expected)


def padding_is_ignored(loss: Loss, params: Params, batch: Any) -> None:
    """Checks that neither the tokens of padding nor more padding on the left or right changes anything.

    Args:
      loss: returns ((sum, weight), metrics).
      params: its weights.
      batch: an `LMBatch`, a `RankingBatch` or `Episodes`.
    """
    expected = _mean(loss, params, [batch])
    real = np.asarray(batch.tokens)[np.asarray(batch.segments) > 0]
    tokens = (real.max(), real.min()) if real.size else (0, 0)
    for left, right, token in ((0, 0, tokens[0]), (0, 6, tokens[0]), (6, 0, tokens[1]), (3, 3, tokens[0])):
        change = f"{left} columns of padding more on the left, {right} on the right, token {token} in all of it"
        padded = rewriting.padded(batch, left, right, int(token))
        _same_mean("padding_is_ignored", loss, change, params, [padded], expected)


def packing_is_ignored(loss: Loss, params: Params, batch: Any) -> None:
    """Checks that rows with several segments give the same as the segments in separate rows.

    Args:
      loss: returns ((sum, weight), metrics).
      params: its weights.
      batch: an `LMBatch` or a `RankingBatch`.
    """
    alone = rewriting.unpacked(batch)
    if alone:
        expected = _mean(loss, params, alone)
        _same_mean("packing_is_ignored", loss, "several segments in a row", params, [batch], expected)


def microbatches_agree(
    loss: Loss, params: Params, batch: Any, cuts: Iterable[tuple[int, int]] = CUTS, *, tolerance: float | None = None
) -> None:
    """Checks that loss, gradient and metrics do not depend on how a batch is split.

    They are compared with the directly computed mean over the whole batch and its gradient. Use
    rows of different weights: if all weights are equal, a mean of means is also right.

    Args:
      loss: returns ((sum, weight), metrics).
      params: its weights.
      batch: a pytree of arrays [B, ...].
      cuts: pairs (microbatches, devices) whose product divides B. A mapped axis stands for devices.
      tolerance: as a share of the largest number; None means 1024 machine epsilons.
    """
    with _precision(params):
        expected = _direct(loss)(params, batch)
        check = functools.partial(assert_close, "microbatches_agree", loss, tolerance=tolerance, floor=0.0)
        for microbatches, devices in cuts:
            rows = jax.tree.map(lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), batch)
            pair, metrics = _summed(loss, microbatches, devices)(params, rows)
            change = f"{microbatches} microbatches on each of {devices} devices"
            for device in range(devices):
                (gradient, weight), measured = jax.tree.map(lambda x, i=device: x[i], (pair, metrics))
                check(change, losses.mean(gradient, weight), expected[0], batch)
                check(change, measured, expected[1], batch)


# Helpers. Functions are cached, so that each is compiled once.


@functools.lru_cache(maxsize=256)
def _compiled(function: Equation) -> Equation:
    return jax.jit(function)


@functools.lru_cache(maxsize=256)
def _mapped(function: Equation) -> Equation:
    return jax.jit(jax.vmap(functools.partial(function, axis_name="rows"), axis_name="rows"))


@functools.lru_cache(maxsize=256)
def _results_and_gradient(function: Equation, floating: tuple[int, ...]) -> Equation:
    """Returns a program for the results, and for the gradient of their sum with respect to the floating arguments."""

    def total(*arrays: Any) -> tuple[jax.Array, Any]:
        result = function(*arrays)
        leaves = [x for x in jax.tree.leaves(result) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
        return sum((jnp.sum(x) for x in leaves), jnp.zeros(())), result

    def run(*arrays: Any) -> dict[str, Any]:
        if not floating:
            return {"value": function(*arrays), "gradient": ()}
        gradient, result = jax.grad(total, argnums=floating, has_aux=True)(*arrays)
        return {"value": result, "gradient": gradient}

    return jax.jit(run)


@functools.lru_cache(maxsize=256)
def _sum_and_gradient(function: Equation) -> tuple[Equation, Equation]:
    def value(*arguments: Any) -> jax.Array:
        return jax.tree.leaves(function(*arguments))[0]

    return jax.jit(value), jax.jit(jax.grad(value))


def _options() -> dict[str, Any] | None:
    """Returns options that halve the time to compile a network for the CPU."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


@functools.lru_cache(maxsize=256)
def _sums(loss: Loss) -> Equation:
    def run(params: Params, batch: Any) -> Any:
        pair, metrics = summed_gradient(loss, params, batch, jax.random.key(0))
        return pair, metrics["loss"]

    return jax.jit(run, compiler_options=_options())


@functools.lru_cache(maxsize=256)
def _direct(loss: Loss) -> Equation:
    """Returns a program for the gradient of the mean and the metrics of a whole batch."""

    def mean(params: Params, batch: Any) -> tuple[jax.Array, Any]:
        (total, weight), metrics = loss(params, batch, jax.random.key(0))
        return losses.mean(total, weight), {"loss": Mean(total, weight), **metrics}

    return jax.jit(jax.grad(mean, has_aux=True), compiler_options=_options())


@functools.lru_cache(maxsize=256)
def _summed(loss: Loss, microbatches: int, devices: int) -> Equation:
    """Returns a program for sums and metrics of rows [devices, B / devices, ...], with a result for each device."""

    def run(params: Params, rows: Any) -> Any:
        program = functools.partial(
            summed_gradient, loss, microbatches=microbatches, axis_name=None if devices == 1 else "data"
        )
        if devices == 1:
            found = program(params, jax.tree.map(lambda x: x[0], rows), jax.random.key(0))
            return jax.tree.map(lambda x: x[None], found)
        return jax.vmap(program, in_axes=(None, 0, None), axis_name="data")(params, rows, jax.random.key(0))

    return jax.jit(run, compiler_options=_options())


def _mean(loss: Loss, params: Params, batches: Sequence[Any]) -> tuple[dict[str, Any], Any]:
    """Computes the mean loss over batches, its gradient and its weight: sums first, divided once."""
    with _precision(params):
        (gradient, weight), metric = functools.reduce(
            lambda left, right: jax.tree.map(jnp.add, left, right), [_sums(loss)(params, batch) for batch in batches]
        )
        return {"loss": losses.mean(metric.total, metric.weight), "gradient": losses.mean(gradient, weight)}, weight


def _same_mean(
    law: str, loss: Loss, change: str, params: Params, batches: Sequence[Any], expected: tuple[dict[str, Any], Any]
) -> None:
    mean, weight = _mean(loss, params, batches)
    check = functools.partial(assert_close, law, loss, change, inputs=list(batches), floor=0.0)
    check(mean, expected[0])
    check({"weight": weight}, {"weight": expected[1]})


def _precision(params: Params) -> Any:
    wide = any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(params))
    return jax.enable_x64(wide)


def _in_float64(inputs: Any) -> Any:
    """Converts to NumPy arrays, with floating ones in float64; random keys are unchanged."""

    def widened(x: Any) -> Any:
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.extended):
            return x
        array = np.asarray(x)
        return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(widened, inputs)


def _permutations(size: int) -> Iterable[tuple[str, np.ndarray]]:
    """Yields a swap and a rotation, which generate all permutations."""
    places = np.arange(size)
    yield "the first two swapped", np.concatenate([places[:2][::-1], places[2:]])
    yield "rotated by one", np.roll(places, 1)


def _merged(left: Any, right: Any) -> Any:
    """Adds two results, number by number; metrics are merged."""
    is_metric = lambda x: isinstance(x, Mean | Maximum)  # noqa: E731
    return jax.tree.map(lambda x, y: x.merge(y) if is_metric(x) else x + y, left, right, is_leaf=is_metric)


def _covers(mask: np.ndarray, x: Any) -> bool:
    return np.shape(x)[: mask.ndim] == mask.shape


def _over(mask: np.ndarray, x: Any) -> np.ndarray:
    """Expands the mask to as many axes as x."""
    return mask.reshape(mask.shape + (1,) * (np.ndim(x) - mask.ndim))


def _junk(x: np.ndarray, junk: float) -> Any:
    if np.issubdtype(x.dtype, np.floating):
        return junk
    return x.max(initial=x.flat[0]) if junk > 0 else x.min(initial=x.flat[0])


def _wider(x: np.ndarray, axes: int, fill: Any) -> np.ndarray:
    """Adds a row, and two columns to each of the other leading axes."""
    widths = [(0, 1), *[(0, 2)] * (axes - 1), *[(0, 0)] * (x.ndim - axes)]
    return np.pad(x, widths, constant_values=fill)


def _widened(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Widens an array like the mask: by junk if it has the mask's axes, else by another row."""
    if _covers(mask, x):
        return _wider(x, mask.ndim, _junk(x, np.nan))
    if x.ndim and len(x) == len(mask):
        return np.concatenate([x, x[:1]])
    return x
