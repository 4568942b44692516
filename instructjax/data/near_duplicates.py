"""Finds texts that are nearly the same, by MinHash signatures of their words (Broder 1997).

A text is the set of its SHINGLE consecutive words. BANDS x ROWS hashes of the set make a signature, and two texts of
which a band of ROWS hashes is the same are near-duplicates. With a Jaccard similarity J of their sets, this has the
probability 1 - (1 - J^ROWS)^BANDS: 0.06 for J = 0.5, 0.61 for 0.7, 0.95 for 0.8, and 0.9999 for 0.9.

Whether two texts are near-duplicates depends on these two only, so no order of the texts changes what is found.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from instructjax.errors import InputError

SHINGLE = 3  # words
BANDS = 16
ROWS = 8  # hashes of a band

# Odd factors that make one number of the hashes of a band.
_FACTORS = np.random.default_rng(0).integers(2**63, size=ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def signer(where: str) -> Callable[[str], np.ndarray]:
    """Returns a function that computes the signature uint64 [BANDS] of a text, a number for each band.

    Args:
      where: the flag that asks for it, for the error.

    Raises:
      InputError: the package datasketch is missing.
    """
    try:
        import datasketch
    except ImportError:
        raise InputError(
            f"{where}: expected the package datasketch, found none; pip install 'instructjax[curation]'"
        ) from None
    empty = datasketch.MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=zlib.crc32)

    def sign(text: str) -> np.ndarray:
        found: Any = empty.copy()
        found.update_batch(_shingles(text))
        hashes = found.hashvalues.astype(np.uint64).reshape(BANDS, ROWS)
        return (hashes * _FACTORS).sum(axis=1, dtype=np.uint64)

    return sign


def connect(signatures: np.ndarray) -> np.ndarray:
    """Numbers the groups of near-duplicates: texts of one group are connected by pairs that share a band.

    Args:
      signatures: uint64 [N, BANDS].

    Returns:
      The number of each text's group, int32 [N].
    """
    count = len(signatures)
    if not count:
        return np.zeros(0, np.int32)
    pairs = [_equal_neighbors(band) for band in signatures.T]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    edges = sparse.coo_array((np.ones(len(rows), np.bool_), (rows, columns)), (count, count))
    return csgraph.connected_components(edges, directed=False)[1]


def _equal_neighbors(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of indices that connect all equal keys."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    same = keys[order[1:]] == keys[order[:-1]]
    return order[:-1][same], order[1:][same]


def _shingles(text: str) -> list[bytes]:
    words = text.casefold().split()
    starts = range(max(1, len(words) - SHINGLE + 1))
    return [" ".join(words[start : start + SHINGLE]).encode("utf-8", "surrogatepass") for start in starts]
