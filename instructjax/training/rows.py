"""Splits the rows of a batch into parts that run one after the other, and over the devices of a mapped axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def split_interleaved(rows: Any, parts: int) -> Any:
    """Splits rows [B, ...] into n parts [n, B / n, ...]: row i goes to part i mod n.

    On a mesh that splits rows into blocks, every part then has rows of every device.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), rows)


def merge_interleaved(parts: Any) -> Any:
    """Undoes `split_interleaved`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def first_row(rows: int, axis_name: str | None) -> int | Array:
    """Returns the index, in the global batch, of this device's first row.

    Args:
      rows: rows per device.
      axis_name: the mapped axis; None if arrays are global.
    """
    return 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows


def gather_rows(tree: Any, axis_name: str | None) -> Any:
    """Gathers the rows [B, ...] of all devices, in order; returns the tree unchanged if arrays are global."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def own_rows(rows: Array, axis_name: str | None) -> Array:
    """Returns this device's share [N / devices] of the row numbers [N] of a global minibatch."""
    if axis_name is None:
        return rows
    size = rows.shape[0] // jax.lax.axis_size(axis_name)
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(axis_name) * size, size)
