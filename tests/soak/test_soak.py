"""A few kills of a real run; tests/soak/soak.py makes a hundred."""

import pytest

from tests.soak.soak import differences, soak


def test_differences_are_named():
    assert differences({"a": 1, "b": [2.0], "c": 3}, {"a": 1, "b": [2.5], "d": 4}) == ["b", "c", "d"]


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    made, compared = soak(tmp_path, 5)
    assert made == 5 and compared >= 1
