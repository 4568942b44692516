"""docs/invariants.md lists every injected fault of others once, with what its test says catches it."""

import ast
import functools
import pathlib
import re

import pytest

from instructjax import errors
from instructjax.runs.invariants import INVARIANTS
from instructjax.testing import laws

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "invariants.md").read_text()
HEAD = "| fault | shipped in | caught by | test |"
CITATION = re.compile(r"tests/[\w/]+\.py::\w+")


def rows():
    """Returns the cells of each row of the table."""
    _, table = PAGE.split(HEAD)
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ROWS = rows()


@functools.cache
def functions(file):
    """Returns the source of each function of a file, by name."""
    source = (ROOT / file).read_text()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def source_of(citation):
    file, _, name = citation.partition("::")
    return functions(file)[name]


def exists(check):
    """Returns whether a check is an invariant, a law, an error of the package, or a function of a test."""
    if CITATION.fullmatch(check):
        return bool(source_of(check))
    return check in INVARIANTS or hasattr(errors, check) or hasattr(laws, check.removeprefix("laws."))


def test_at_least_fifteen_faults_are_listed_and_none_twice():
    assert len({fault for fault, *_ in ROWS}) == len(ROWS) >= 15
    assert f"All {len(ROWS)} are caught" in PAGE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_test_of_a_row_names_what_catches_the_fault(row):
    _, _, caught_by, test = row
    (citation,) = CITATION.findall(test)
    checks = re.findall(r"`([^`]+)`", caught_by)
    assert checks
    for check in checks:
        assert exists(check)
        assert check.rpartition("::")[2] in source_of(citation)


def test_every_injected_fault_has_one_row():
    cited = [citation for row in ROWS for citation in CITATION.findall(row[3])]
    files = [f"tests/bugs_of_others/{path.name}" for path in pathlib.Path(__file__).parent.glob("test_faults_*.py")]
    files.remove(f"tests/bugs_of_others/{pathlib.Path(__file__).name}")
    tests = [f"{file}::{name}" for file in files for name in functions(file) if name.startswith("test_")]
    assert len(cited) == len(set(cited))
    assert set(tests) == {citation for citation in cited if citation.startswith("tests/bugs_of_others/")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_link_leads_to_the_thread_or_the_file_that_it_names(row):
    links = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", row[1])
    assert links
    for text, url in links:
        repository, _, number = text.partition("#")
        threads = [f"https://github.com/{repository}/{kind}/{number}" for kind in ("issues", "pull")]
        assert url in threads or re.match(f"https://github.com/{repository}/blob/[0-9a-f]{{40}}/", url)
