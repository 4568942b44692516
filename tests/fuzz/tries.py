"""Strategies for invalid inputs (changes to valid ones, and random bytes), and the check that all fuzz tests make.

The environment variable INSTRUCTJAX_TRIES is the number of tries per test; see docs/errors.md.
"""

import contextlib
import json
import os
import resource
import time

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from instructjax.errors import InputError

TRIES = int(os.environ.get("INSTRUCTJAX_TRIES", "200"))
SECONDS = 10.0  # the limit of processor time for one try
GIB = 1.0  # the limit by which the peak of the process may grow in one try

tries = settings(
    max_examples=TRIES,
    deadline=None,  # `only_input_errors` limits processor time, which does not depend on other programs
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def peak_memory():
    """Returns the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextlib.contextmanager
def only_input_errors():
    """Runs one try. The block may raise an InputError with a message of one line, and no other error.

    Processor time and memory are limited by SECONDS and GIB.
    """
    before, began = peak_memory(), time.process_time()
    try:
        yield
        event("accepted")
    except InputError as error:
        event("rejected")
        assert str(error) and "\n" not in str(error), str(error)
        assert len(str(error)) < 8000, str(error)  # an error lists up to 20 faults
    spent = time.process_time() - began
    assert spent < SECONDS, f"{spent:.1f} s"
    growth = peak_memory() - before
    assert growth < GIB, f"grew by {growth:.1f} GiB"


odd_text = st.sampled_from(
    ["", " ", "\0", "a\nb", "\ud800", "\ufeff", "x" * 5000, "é", "🦊", "../..", "/", "NaN", "1", "<0x41>", "ÿ"]
)
odd_numbers = st.sampled_from(
    [0, 1, -1, 2, 0.5, 2**31 - 1, 2**31, 2**32, 2**63, 10**30, 1e308, 1e-320, float("nan"), float("inf"), -0.0]
)
odd = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_text | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_json(draw, value, most=3):
    """Draws a JSON value with up to `most` of its parts replaced, removed, swapped, renamed or duplicated."""
    for _ in range(draw(st.integers(1, most))):
        value = _changed(draw, value)
    return value


def _changed(draw, value):
    """Returns a copy with one change."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(odd)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[draw(st.integers(0, len(keys) - 1))]
    what = draw(st.sampled_from(["into", "into", "into", "remove", "double", "swap"]))
    copy = value.copy()
    if what == "into":
        copy[key] = _changed(draw, value[key])
    elif what == "remove":
        del copy[key]
    elif what == "swap":
        other = keys[draw(st.integers(0, len(keys) - 1))]
        copy[key], copy[other] = value[other], value[key]
    elif isinstance(copy, list):
        copy.insert(key, value[key])
    else:
        copy[draw(odd_text | st.text(max_size=8))] = value[key]
    return copy


def as_json(value):
    """Encodes a value as JSON, including values that JSON does not allow, such as NaN."""
    return json.dumps(value).encode()


@st.composite
def changed_bytes(draw, content, most=4):
    """Draws a copy of `content` with up to `most` bits flipped, or pieces overwritten, cut, repeated or inserted."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(content)))
        size = draw(st.integers(1, 40))
        what = draw(st.sampled_from(["flip", "write", "remove", "double", "insert", "end"]))
        if what == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "write":
            content[place : place + 8] = draw(
                st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"{" * 8])
            )
        elif what == "remove":
            del content[place : place + size]
        elif what == "double":
            content[place:place] = content[place : place + size]
        elif what == "insert":
            content[place:place] = draw(
                st.binary(max_size=12) | st.sampled_from([b"[" * 20000, b"\xef\xbb\xbf", b"\r\n"])
            )
        else:
            del content[place:]
    return bytes(content)


def any_bytes(content):
    """Returns a strategy for changes to `content` and for random bytes."""
    return changed_bytes(content) | st.binary(max_size=200)
