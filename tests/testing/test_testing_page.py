"""docs/testing.md: its losses satisfy the laws, and its planted bug is caught."""

import pathlib
import re

import numpy as np
import pytest

from instructjax.testing import laws

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "testing.md"
REWARDS = np.array([[0.5, 1.5, -0.25], [1.0, 0.25, 2.0]])
SCORES = np.array([[2, 1, 0], [0, 1, 1]])
VALID = np.array([[True, True, False], [True, True, True]])


@pytest.fixture(scope="module")
def page():
    """Returns the names that the page's code defines."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, names)  # noqa: S102
    return names


@pytest.mark.parametrize("name", ["test_hinge", "test_dpo"])
def test_the_tests_of_the_page_pass(page, name):
    page[name]()


def test_the_planted_bug_is_caught(page):
    with pytest.raises(AssertionError, match="mask_is_respected"):
        laws.mask_is_respected(page["forgetful"], (REWARDS, SCORES, VALID))
