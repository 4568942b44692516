"""How many floating-point operations programs take, and how many bytes they must read and write.

Two counts of operations. `Work` is a formula: the multiplications of matrices that the
mathematics asks for, 2 operations for each multiply-add; a training step takes three times
its forward pass. `matmuls` walks a traced program and counts what it does, which is more
where activations are computed again in the backward pass, or keys that the mask hides. Neither counts norms, softmax
or the optimiser, which are below one percent at the sizes where a plan matters.

Letters: B rows, T tokens of a row, L layers, d width, H heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from instructjax.models.config import TransformerConfig
from instructjax.models.sizes import count_parameters

FLOPS_OF_A_DAY = 1e15 * 86_400  # a petaflop/s-day, the unit of the paper's section 5


@dataclasses.dataclass(frozen=True)
class Work:
    """What a phase of a program costs at least, over all devices together.

    Attributes:
      flops: operations.
      weight_bytes: of weights read, once per pass of a device over its rows. Each device reads
        its tensor-parallel share of all layers, whether it keeps them or gathers them.
      bytes: of everything else read or written, which is divided over all devices: optimiser,
        cache, activations kept for the backward pass.
    """

    flops: float
    weight_bytes: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weight_bytes + other.weight_bytes, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.weight_bytes, times * self.bytes)


def forward_flops(
    config: TransformerConfig, rows: int, length: int, outputs: int, *, slots: int | None = None
) -> float:
    """Operations of a language model's forward pass.

    Args:
      config: the model.
      rows: B.
      length: T, tokens of a row.
      outputs: columns of a row that logits are computed for.
      slots: keys that each query is multiplied with, masked ones too, as in a cache of fixed
        size. None is what the mathematics asks for: a token's own and those before it.
    """
    inner = config.num_heads * config.d_head
    weights = 4 * config.d_model * inner + 2 * config.d_model * config.d_ff
    keys = (length + 1) / 2 if slots is None else slots  # that a query sees, on average
    layer = 2 * length * weights + 4 * length * keys * inner
    return rows * (config.num_layers * layer + 2 * outputs * config.d_model * config.vocab_size)


def scalar_flops(config: TransformerConfig, rows: int, length: int) -> float:
    """Operations of a scalar model's forward pass: the trunk, and d multiply-adds a token."""
    return forward_flops(config, rows, length, 0) + 2 * rows * length * config.d_model


def weight_bytes(config: TransformerConfig) -> float:
    """Bytes of the matrices that a forward pass multiplies with, in the dtype it computes in."""
    inner = config.num_heads * config.d_head
    layer = 4 * config.d_model * inner + 2 * config.d_model * config.d_ff
    embedding = config.vocab_size * config.d_model
    return (config.num_layers * layer + embedding) * itemsize(config.dtype)


def activation_bytes(config: TransformerConfig, rows: int, length: int) -> float:
    """Bytes of the input of each block, which is what is kept for the backward pass at least."""
    return rows * length * config.num_layers * config.d_model * itemsize(config.dtype)


def cache_bytes(config: TransformerConfig, rows: int, slots: int) -> float:
    """Bytes of the keys and values of `rows` sequences of `slots` tokens."""
    inner = config.num_heads * config.d_head
    return 2 * config.num_layers * rows * slots * inner * itemsize(config.dtype)


def forward_work(config: TransformerConfig, flops: float) -> Work:
    """One pass over rows that need no gradient."""
    return Work(flops, weight_bytes(config), 0.0)


def update_work(config: TransformerConfig, flops: float, rows: int, length: int, microbatches: int = 1) -> Work:
    """Gradients of `rows` sequences of `length` tokens, whose forward pass takes `flops`.

    The weights are read by the forward and the backward pass of each microbatch, and once
    more where the backward pass computes the layers again; gradients are added up in float32.
    """
    passes = microbatches * (3 if config.remat else 2)
    gradient = 2 * microbatches * 4 * count_parameters(config)
    return Work(3 * flops, passes * weight_bytes(config), 2 * activation_bytes(config, rows, length) + gradient)


def adam_work(config: TransformerConfig) -> Work:
    """One update: weights, gradient and two moments are read, all but the gradient written, in float32."""
    return Work(0.0, 0.0, 7 * 4 * count_parameters(config))


def decode_work(
    config: TransformerConfig, rows: int, width: int, response: int, parts: int = 1, turns: int | None = None
) -> tuple[Work, Work]:
    """Sampling: prompts, then token by token, each with all the slots of the cache.

    Args:
      config: the model.
      rows: B.
      width: P, tokens of a prompt.
      response: R, the most tokens of a response; the first comes with the prompt.
      parts: how many times a device decodes a batch of rows, one after the other.
      turns: how many times a device computes a batch of prompts where rows are refilled; their queries see the slots of
        the prompt only. None: once for each part, with all slots of the cache.

    Returns:
      The work of the prompts and of the tokens.
    """
    slots = width + response
    seen, passes = (slots, parts) if turns is None else (width, turns)

    def work(tokens: int, slots: int, passes: int) -> Work:
        read = passes * weight_bytes(config)
        return Work(forward_flops(config, rows, tokens, 1, slots=slots), read, cache_bytes(config, rows, slots))

    prefill, token = work(width, seen, passes), work(1, slots, parts)
    return prefill, (response - 1) * token


def itemsize(dtype: str) -> int:
    """Bytes of a number."""
    return jax.numpy.dtype(dtype).itemsize


def matmuls(closed: core.ClosedJaxpr, trips: Sequence[float] = ()) -> float:
    """Operations of all products of matrices in a traced program, the bodies of loops as often as they run.

    Args:
      closed: what `jax.make_jaxpr` or `jax.jit(f).trace(...).jaxpr` gives.
      trips: how often while-loops run, which is not in the program: the outermost, those within it each time that it
        runs, and so on; 1 for deeper ones. That of `sampling.sample` runs max_response - 1 times at most. Of the
        branches of a condition the dearest counts.
    """
    return _count(closed.jaxpr, trips)


def _count(jaxpr: Any, trips: Sequence[float]) -> float:
    return math.fsum(_operation(equation, trips) for equation in jaxpr.eqns)


def _operation(equation: Any, trips: Sequence[float]) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "cond":
        return max(_count(branch.jaxpr, trips) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    if name == "while" and trips:
        times, *trips = trips
    return times * math.fsum(_count(inner, trips) for inner in _inside(parameters))


def _inside(parameters: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls: those of a loop, a jitted function, a rematerialised block."""
    values = jax.tree.leaves(list(parameters.values()), is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)))
    return [
        value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        for value in values
        if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
    ]
