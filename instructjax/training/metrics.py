"""Metrics that can be merged over microbatches, minibatches, devices and steps.

A metric is a weighted mean or a maximum of what was measured so far. `losses.py`
returns pairs (sum, weight); a metric is `Mean(*pair)`. The host divides once, in
`compute`, so the value does not depend on how a batch was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # a JAX array on a device, a NumPy array on the host


class Mean(flax.struct.PyTreeNode):
    """A weighted mean, kept as its sum and its weight.

    Attributes:
      total: the weighted sum.
      weight: the sum of the weights, of the same shape.
    """

    total: Array
    weight: Array

    def merge(self, other: Mean) -> Mean:
        """Returns the mean over the measurements of both."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def reduce(self, axis_name: str | None) -> Mean:
        """Merges over the devices of a mapped axis; returns self if there is none."""
        if axis_name is None:
            return self
        return Mean(jax.lax.psum(self.total, axis_name), jax.lax.psum(self.weight, axis_name))

    def collapse(self) -> Mean:
        """Merges the metrics that are stacked in arrays of any shape into one."""
        return Mean(self.total.sum(), self.weight.sum())

    def empty(self) -> Mean:
        """Returns a mean of no measurements, of the same shapes: merging it changes nothing."""
        return Mean(jnp.zeros(self.total.shape, self.total.dtype), jnp.zeros(self.weight.shape, self.weight.dtype))

    def compute(self) -> float | None:
        """Returns total / weight in float64, on the host; None if the weight is 0."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else None


class Maximum(flax.struct.PyTreeNode):
    """The largest of some numbers.

    Attributes:
      value: the largest so far, -inf if there is none.
    """

    value: Array

    def merge(self, other: Maximum) -> Maximum:
        """Returns the larger of the two."""
        return Maximum(jnp.maximum(self.value, other.value))

    def reduce(self, axis_name: str | None) -> Maximum:
        """Merges over the devices of a mapped axis; returns self if there is none."""
        return self if axis_name is None else Maximum(jax.lax.pmax(self.value, axis_name))

    def collapse(self) -> Maximum:
        """Merges the metrics that are stacked in an array of any shape into one."""
        return Maximum(self.value.max())

    def empty(self) -> Maximum:
        """Returns a maximum of no measurements, of the same shape: merging it changes nothing."""
        return Maximum(jnp.full(self.value.shape, -jnp.inf, self.value.dtype))

    def compute(self) -> float | None:
        """Returns the value as a float, on the host; None if it is -inf."""
        value = float(self.value)
        return None if value == -np.inf else value


Metric = Mean | Maximum
Metrics = dict[str, Metric]


def total(metrics: Metrics, name: str) -> Array:
    """Returns the undivided sum of a mean."""
    metric = metrics[name]
    assert isinstance(metric, Mean)
    return metric.total


def merge(left: Metrics, right: Metrics) -> Metrics:
    """Merges two sets of metrics, name by name."""
    return {name: _merged(metric, right[name]) for name, metric in left.items()}


def _merged(left: Metric, right: Metric) -> Metric:
    if isinstance(left, Mean) and isinstance(right, Mean):
        return left.merge(right)
    assert isinstance(left, Maximum) and isinstance(right, Maximum)
    return left.merge(right)


def reduce(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Merges each metric over the devices of a mapped axis; returns them unchanged if there is none."""
    return {name: metric.reduce(axis_name) for name, metric in metrics.items()}


def collapse(metrics: Metrics) -> Metrics:
    """Merges metrics that are stacked along leading axes, as `jax.lax.scan` stacks them."""
    return {name: metric.collapse() for name, metric in metrics.items()}


def empty(metrics: Metrics) -> Metrics:
    """Returns empty metrics of the same names and shapes; arrays may be `jax.ShapeDtypeStruct`s."""
    return {name: metric.empty() for name, metric in metrics.items()}


def compute(window: Sequence[Metrics]) -> dict[str, float]:
    """Computes the value of each metric over several steps, summed in float64 on the host.

    Args:
      window: the metrics of each step, with the same names, on the host.

    Returns:
      A number for each name; empty metrics are left out.
    """
    values = {}
    for name in window[0]:
        stacked = jax.tree.map(lambda *parts: np.asarray(parts, np.float64), *(metrics[name] for metrics in window))
        if (value := stacked.collapse().compute()) is not None:
            values[name] = value
    return values
