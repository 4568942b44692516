"""docs/paper.md covers the paper, and every name and value on it is right."""

import ast
import functools
import operator
import pathlib
import re

import pytest

from configs import instructgpt, sandbox

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text()
CODE = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
VALUES = re.findall(r"`([\w.]+)` = ([^\s,;|]+)", PAGE)

ITEMS = (
    *(f"Equation {i}" for i in (1, 2)),
    *(f"Figure {i}" for i in range(1, 14)),  # 1 to 9 in the main text, 10 to 13 in appendices B and C
    *(f"Table {i}" for i in range(1, 14)),  # 1 to 3 in the main text, the others in appendices A and B
    *("A.1", "A.2", "A.2.1", "A.2.2", "A.3", "A.4", "B.1", "B.2", "B.3", "B.4", "B.5"),
    *("C.1", "C.2", "C.3", "C.4", "C.5"),
)


def wrong(code):
    """What is wrong about a span of code: None if it names something that exists."""
    if "::" in code:
        file, _, name = code.partition("::")
        return None if name in names(file) else f"{file} has no {name}"
    if "/" in code:
        return None if (ROOT / code).exists() else f"there is no {code}"
    key = code.removeprefix("--config.").partition("=")[0]
    try:
        value(key)
    except (AttributeError, KeyError):
        return f"there is no key {key}"
    return None


def value(key):
    config = sandbox.get_config() if key.startswith("sandbox.") else instructgpt.get_config("1p3b")
    return operator.attrgetter(key)(config)


@functools.cache
def names(file):
    """The names that a file defines at its top, and CLASS.FIELD and CLASS.METHOD."""
    if not (ROOT / file).is_file():
        return frozenset()
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in defined(inner)}
    return frozenset(found)


def defined(node):
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name()):
            return {node.target.id}
    return set()


@pytest.mark.parametrize("code", CODE)
def test_what_is_named_exists(code):
    assert wrong(code) is None


@pytest.mark.parametrize(("key", "written"), VALUES)
def test_what_is_said_of_a_key_is_its_value(key, written):
    try:
        written = ast.literal_eval(written)
    except ValueError:
        pass  # a word, such as a dtype
    assert value(key) == written


def test_much_is_named():
    assert len(CODE) > 100 and len(VALUES) > 40


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_paper_has_a_row(item):
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    assert any(re.search(rf"(?<![\w.]){re.escape(item)}(?!\.?\d)", row) for row in rows)


def test_every_row_says_where_or_why_not():
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith("| paper"):
            _, _, what, where, _ = line.split("|")
            assert what.strip()
            assert "`" in where or "**absent**:" in where, line


@pytest.mark.parametrize(
    "code",
    [
        "instructjax/losses.py::rank_loss",
        "instructjax/records.py::Ranking.rating",
        "instructjax/loss.py::ranking_loss",
        "docs/papers.md",
        "ppo.kl_coeficient",
        "sandbox.label",
        "--config.sft.epoch=1",
        "ranking_loss",
    ],
)
def test_a_wrong_name_is_found(code):
    assert wrong(code)
