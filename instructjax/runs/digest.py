"""Short numbers that change when a bit of an array or of a JSON object changes.

Checkpoints carry them, so that damage on a disk is found when it is read and not in the
curves of a later run.
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
    """The type, shape and digest of each array of a tree, by its place: {"params/w": "float32[2, 3] 9f3c01aa"}.

    The digest is computed where the array lies. It is a sum of integers, so that it is
    the same however the array is spread over devices.
    """
    # One after the other: sums over many devices that nobody waits for stop each other on CPU.
    return {place: f"{_kind(leaf)} {int(_sum(_bits(leaf))):08x}" for place, leaf in _leaves(tree).items()}


def kinds(tree: Any) -> dict[str, str]:
    """The first part of `digests`, also for a tree of `jax.ShapeDtypeStruct`: {"params/w": "float32[2, 3]"}."""
    return {place: _kind(leaf) for place, leaf in _leaves(tree).items()}


def subtree(places: Mapping[str, str], item: Sequence[str]) -> dict[str, str]:
    """The entries of `digests` under a key: {"a/b": x, "c": y} below ("a",) is {"b": x}.

    Raises:
      ValueError: there are none.
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
      saved: of `digests`.
      template: of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: an array of either has no partner, or is of another type or shape.
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
    """A JSON object that holds a JSON value and its hash; see `verify_checksum`."""
    return {"content": value, "sha256": _hash(value)}


def verify_checksum(sealed: Any) -> Any:
    """The value that `with_checksum` was given.

    Raises:
      ValueError: it is not that value any more.
    """
    if not isinstance(sealed, Mapping) or set(sealed) != {"content", "sha256"}:
        raise ValueError("expected content and its sha256")
    if (found := _hash(sealed["content"])) != sealed["sha256"]:
        raise ValueError(f"expected content with the sha256 {sealed['sha256']}, found {found}")
    return sealed["content"]


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
    """The bits of an array as unsigned integers of at most 32 bits; 64 bits are two of them, in a last axis."""
    size = np.dtype(leaf.dtype).itemsize
    unsigned = np.dtype(f"u{min(size, 4)}")
    if isinstance(leaf, Array):
        return leaf.astype(unsigned) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, unsigned)
    leaf = np.ascontiguousarray(leaf)
    return (leaf[..., None] if size > 4 else leaf).view(unsigned)


@jax.jit
def _sum(bits: Array) -> Array:
    """sum_i m(bits_i ^ m(i)) modulo 2^32, where m mixes the bits of 32 and loses none.

    A change of one element always changes its term, and so the sum. That i goes into the term tells
    elements that changed places.
    """
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(_mixed(bits.astype(jnp.uint32) ^ _mixed(index)), dtype=jnp.uint32)


def _mixed(x: Array) -> Array:
    """Shifts and odd factors, each of which can be undone."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
