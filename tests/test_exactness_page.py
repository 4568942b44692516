"""docs/exactness.md and docs/invariants.md name tests and files that exist, and figures that were found."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CITED = sorted(
    {
        citation
        for page in ("exactness", "invariants")
        for citation in re.findall(r"tests/[\w/]+\.py(?:::\w+)?", (ROOT / "docs" / f"{page}.md").read_text())
    }
)


def test_something_is_cited():
    assert len(CITED) > 30


@pytest.mark.parametrize("citation", CITED)
def test_a_cited_test_exists(citation):
    file, _, name = citation.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions


def test_every_difference_found_is_a_number_within_its_tolerance():
    page = (ROOT / "docs" / "exactness.md").read_text()
    (head,) = [line for line in page.splitlines() if line.startswith("| claim | tolerance | largest difference found")]
    rows = page.split(head)[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        _, tolerance, found, _ = (cell.strip() for cell in row.strip("|").split("|"))
        allowed = 0.0 if tolerance.startswith("every") else float(tolerance.split()[0])
        assert float(found.split()[0]) <= allowed, row


def test_every_invariant_is_described():
    from instructjax.runs.invariants import INVARIANTS

    page = (ROOT / "docs" / "invariants.md").read_text()
    for name, invariant in INVARIANTS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        limits = [float(cell.strip()) for cell in row.split("|")[-3:-1]]
        assert limits == [invariant.limit, invariant.low_precision_limit]
