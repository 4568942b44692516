import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from instructjax.runs import digest

DTYPES = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, np.float64, np.int64, bool])
arrays = DTYPES.flatmap(
    lambda dtype: hnp.arrays(np.uint8, st.sampled_from([1, 5]).map(lambda n: (n, 3, np.dtype(dtype).itemsize))).map(
        lambda bits: (bits & 1).view(bool)[..., 0] if dtype is bool else bits.view(dtype)[..., 0]
    )
)


def of(array):
    return digest.digests({"x": array})["x"]


@settings(deadline=None)  # of compilation
@given(arrays, st.data())
def test_a_flipped_bit_changes_the_digest(array, data):
    bits = np.ascontiguousarray(array).view(np.uint8).copy()
    place = data.draw(st.integers(0, bits.size - 1))
    bit = 0 if array.dtype == bool else data.draw(st.integers(0, 7))
    flipped = bits.reshape(-1)
    flipped[place] ^= 1 << bit
    assert of(flipped.reshape(bits.shape).view(array.dtype).reshape(array.shape)) != of(array)
    assert of(array.copy()) == of(array)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)), st.integers(0, 11), st.integers(0, 11))
def test_swapped_elements_change_the_digest(array, i, j):
    swapped = array.reshape(-1).copy()
    swapped[[i, j]] = swapped[[j, i]]
    same = swapped.tobytes() == array.tobytes()
    assert (of(swapped.reshape(3, 4)) == of(array)) == same


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, bool])
def test_host_and_device_agree(dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 5).astype(dtype)
    assert of(array) == of(jnp.asarray(array))


def test_type_and_shape_are_part_of_it():
    zeros = [np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros((2, 2), np.float32)]
    assert len({of(array) for array in zeros}) == 3
    assert of(zeros[2]).startswith("float32[2, 2] ")
    assert digest.kinds({"a": jax.ShapeDtypeStruct((2, 2), np.float32), "b": [zeros[1]]}) == {
        "a": "float32[2, 2]",
        "b/0": "int32[4]",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, json_values)
def test_a_checksum_holds_for_its_content_only(value, other):
    sealed = digest.with_checksum(value)
    assert digest.verify_checksum(sealed) == value
    if digest.with_checksum(other)["sha256"] != sealed["sha256"]:
        with pytest.raises(ValueError, match="sha256"):
            digest.verify_checksum({**sealed, "content": other})


@pytest.mark.parametrize("broken", [None, 3, [], {}, {"content": 1}, {"content": 1, "sha256": "", "more": 2}])
def test_values_without_a_checksum_are_rejected(broken):
    with pytest.raises(ValueError, match="expected"):
        digest.verify_checksum(broken)


def test_subtree_selects_the_entries_below_a_key():
    places = {"a/b/c": "1", "a/d": "2", "ab/c": "3", "w": "4"}
    assert digest.subtree(places, ()) == places
    assert digest.subtree(places, ("a",)) == {"b/c": "1", "d": "2"}
    assert digest.subtree(places, ("a", "b")) == {"c": "1"}
    assert digest.subtree(places, ("w",)) == {"": "4"}
    with pytest.raises(ValueError, match="expected x in the state, found only b, d"):
        digest.subtree(places, ("a", "x"))
