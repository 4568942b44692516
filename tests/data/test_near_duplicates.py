"""Signatures depend on the set of words, and groups are those of a search over all pairs."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from instructjax.data import near_duplicates
from instructjax.errors import InputError

SIGNATURES = arrays.arrays(
    np.uint64, st.tuples(st.integers(0, 8), st.just(near_duplicates.BANDS)), elements=st.integers(0, 40)
)


@given(SIGNATURES)
def test_groups_are_the_connected_ones(signatures):
    found = near_duplicates.connect(signatures)
    groups = list(range(len(signatures)))
    for i, one in enumerate(signatures):
        for j, other in enumerate(signatures):
            if (one == other).any():
                groups = [groups[i] if group == groups[j] else group for group in groups]
    assert [[a == b for b in found] for a in found] == [[a == b for b in groups] for a in groups]


def test_signatures():
    pytest.importorskip("datasketch", reason="needs the extra curation")
    sign = near_duplicates.signer("sign")
    words = [f"word{i}" for i in range(100)]
    text, other = " ".join(words), " ".join(reversed(words))
    one = sign(text)
    assert one.shape == (near_duplicates.BANDS,) and one.dtype == np.uint64
    np.testing.assert_array_equal(one, sign(f"  {text.upper()}\n"))
    changed = sign(" ".join([*words[:50], "another", *words[51:]]))
    assert 0 < (one == changed).sum() < near_duplicates.BANDS
    assert not (one == sign(other)).any() and not (sign("a b") == sign("a c")).any()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(InputError, match=r"--near: expected the package datasketch.*instructjax\[curation\]"):
        near_duplicates.signer("--near")
