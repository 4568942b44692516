"""Array types for signatures.

`Float[Array, "B T"]` is a JAX array of floating-point numbers with B rows of T tokens. Within one call, a letter
always stands for the same size. `Shaped` is any dtype, `*shape` any number of axes, `#B` is B or 1, and "" is a
scalar. Dtypes and shapes are checked in the tests only (`tests/shape_checks.py`).

    B  rows of a batch              V  vocabulary
    T  tokens of a row              L  layers
    S  prompts in a row             H  heads
    K  answers to a prompt          D  width of a head
    P  tokens of a prompt           d  width of the residual stream
    R  tokens of a response         G  heads of keys and values

In `models`, S is the number of keys that a query may see: the slots of a cache, or T without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Int, Num

Array: TypeAlias = jax.Array
AnyArray: TypeAlias = jax.Array | np.ndarray  # NumPy on the host, JAX on a device
Leaf: TypeAlias = Any  # an array of either kind; anything else under `jax.eval_shape`, `jax.vmap` and `jax.tree.map`
Index: TypeAlias = Int[Array, ""] | int
TokenIds: TypeAlias = Index | tuple[Index, ...]  # one, or any of several
Scalar: TypeAlias = Num[Array, ""] | float

Tree: TypeAlias = Any  # a pytree of arrays
Params: TypeAlias = Mapping[str, Any]  # nested mappings from names to arrays
Model: TypeAlias = Any  # a LanguageModel, a ScalarModel, or any object with the methods that are called
