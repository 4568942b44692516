"""The code of docs/testing.md runs and fails where the page says so; its tables name every law and strategy."""

import ast
import inspect
import pathlib
import re

import pytest

from instructjax.testing import laws, strategies

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "testing.md").read_text()
DPO, BUG, RIGHT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def public(module):
    """The functions that a module defines for others."""
    tree = ast.parse(inspect.getsource(module))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}


def run(*blocks):
    names = {}
    for block in blocks:
        exec(block, names)
    return names


def test_dpo_keeps_the_laws():
    run(DPO)["test_dpo"]()


def test_the_bug_is_caught():
    with pytest.raises(AssertionError, match="^mask_is_respected: my_loss: more rows and columns with mask 0"):
        run(BUG)["test_my_loss"]()


def test_the_mended_loss_keeps_the_laws():
    run(BUG, RIGHT)["test_my_loss"]()


def test_the_gradient_of_a_late_selection_is_nan():
    before, after = re.search(r"    error = (.*)\n    return .*square\(error\)", RIGHT)[1], "jnp.where(mask > 0, x, 0)"
    late = RIGHT.replace(before, "values - returns").replace(
        "jnp.square(error)", after.replace("x", "jnp.square(error)")
    )
    with pytest.raises(AssertionError, match=r"^mask_is_respected: my_loss: nan .*: result\['gradient'\]"):
        run(BUG, late)["test_my_loss"]()


def test_every_law_is_in_the_tables():
    assert set(re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)) == public(laws)


def test_every_strategy_is_in_the_table():
    named = set(re.findall(r"`(\w+)`", PAGE.split("## Strategies")[1]))
    assert named - {"LMBatch", "RankingBatch", "Episodes"} == public(strategies) - {"batches_of"}
