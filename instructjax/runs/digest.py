"""Computes digests of arrays and checksums of JSON, which change if any bit changes.

Checkpoints contain them, so that damage on a disk is found when a checkpoint is read, not in
the curves of a later run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def digests(tree: Any) -> dict[str, str]:
    """Returns the type, shape and digest of each array by its path: {"params/w": "float32[2, 3] 9f3c01aa"}.

    The digest is computed on the devices that hold the array. It is a sum of integers, so
    it does not depend on the sharding.
    """
    # One after the other: on CPUs, concurrent collectives over many devices can deadlock.
    return {place: f"{_kind(leaf)} {int(_sum(_bits(leaf))):08x}" for place, leaf in _leaves(tree).items()}


def kinds(tree: Any) -> dict[str, str]:
    """Returns only types and shapes, as {"params/w": "float32[2, 3]"}. Leaves may be `jax.ShapeDtypeStruct`s."""
    return {place: _kind(leaf) for place, leaf in _leaves(tree).items()}


def subtree(places: Mapping[str, str], item: Sequence[str]) -> dict[str, str]:
    """Returns the entries of `digests` under a path: {"a/b": x, "c": y} and ("a",) give {"b": x}.

    Raises:
      ValueError: there are no such entries.
    """
    for key in item:
        found = {}
        for place, value in places.items():
            first, _, rest = place.partition("/")
            if first == key:
                found[rest] = value
        if not found:
            raise ValueError(
                f"expected {key} in the state, found only {', '.join(sorted({p.partition('/')[0] for p in places}))}"
            )
        places = found
    return dict(places)


def check_fit(saved: Mapping[str, str], template: Any) -> None:
    """Compares types and shapes of saved arrays with those of a tree.

    Args:
      saved: what `digests` returned.
      template: a pytree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: an array is missing on either side, or differs in type or shape.
    """
    expected = kinds(template)
    found = {place: text.rpartition(" ")[0] for place, text in saved.items()}
    wrong = [place for place in expected | found if expected.get(place) != found.get(place)]
    if wrong:
        place = wrong[0]
        raise ValueError(
            f"{place}: expected {expected.get(place, 'nothing')}, found {found.get(place, 'nothing')}; "
            f"{len(wrong)} of {len(expected | found)} arrays do not fit this model"
        )


def with_checksum(value: Any) -> dict[str, Any]:
    """Wraps a JSON value in an object with its hash; see `verify_checksum`."""
    return {"content": value, "sha256": _hash(value)}


def verify_checksum(checked: Any) -> Any:
    """Returns the value that was given to `with_checksum`.

    Raises:
      ValueError: the value or its hash has changed.
    """
    if not isinstance(checked, Mapping) or set(checked) != {"content", "sha256"}:
        raise ValueError("expected content and its sha256")
    if (found := _hash(checked["content"])) != checked["sha256"]:
        raise ValueError(f"expected content with the sha256 {checked['sha256']}, found {found}")
    return checked["content"]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        for path, leaf in found
    }


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{', '.join(map(str, leaf.shape))}]"


def _bits(leaf: Any) -> Any:
    """Returns the bits of an array as unsigned integers; 64-bit elements become two of 32 bits, in a last axis."""
    size = np.dtype(leaf.dtype).itemsize
    unsigned = np.dtype(f"u{min(size, 4)}")
    if isinstance(leaf, Array):
        return leaf.astype(unsigned) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, unsigned)
    leaf = np.ascontiguousarray(leaf)
    return (leaf[..., None] if size > 4 else leaf).view(unsigned)


@jax.jit
def _sum(bits: Array) -> Array:
    """Computes sum_i m(bits_i ^ m(i)) modulo 2^32, where m is a bijection that mixes 32 bits.

    A change of one element always changes its term, and so the sum. The index i is part of the term, so
    swapped elements change the sum as well.
    """
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(_mix(bits.astype(jnp.uint32) ^ _mix(index)), dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """Mixes bits by shifts and odd factors, each of which is invertible."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
