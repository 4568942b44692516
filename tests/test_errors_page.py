"""Tests that docs/errors.md has a row, with the printed message, for each fault that a test provokes.

`PYTHONPATH=.:experiments python tests/test_errors_page.py` rewrites the rows.
"""

import importlib
import pathlib
import re

import pytest

from instructjax import errors

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
FILES = [
    f"tests/wrong_input/test_wrong_{part}.py"
    for part in (
        "records",
        "recipes",
        "flags",
        "tokenizers",
        "checkpoints",
        "weights",
        "sharing",
        "places",
        "environment",
        "tasks",
        "curation",
        "labeling",
    )
]
BEGIN, END = "<!-- the rows: written by tests/test_errors_page.py -->\n", "<!-- the end of the rows -->\n"


def module(file):
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


def faults(file):
    """Returns {name of the test: its fault}."""
    return {name: test.fault for name, test in vars(module(file)).items() if hasattr(test, "fault")}


def tables():
    """Returns the tables of the page, one per file of tests."""
    parts = []
    for file in FILES:
        parts.append(f"## {module(file).__doc__}\n\nIn `{file}`:\n\n| problem | message | test |\n| - | - | - |\n")
        for name, fault in faults(file).items():
            cells = fault.wrong, f"`{fault.message.strip()}`", f"`{name}`"
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
        parts.append("\n")
    return "".join(parts)


def test_the_page_is_up_to_date():
    _, rest = PAGE.read_text().split(BEGIN)
    rows, _ = rest.split(END)
    assert rows == tables()


@pytest.mark.parametrize("file", FILES)
def test_faults_are_tests_and_are_distinct(file):
    found = faults(file)
    assert found and all(name.startswith("test_") for name in found)
    assert len({fault.wrong for fault in found.values()}) == len(found)
    assert all("`" not in fault.message for fault in found.values())


def test_there_are_at_least_100_messages():
    messages = [fault.message for file in FILES for fault in faults(file).values()]
    assert len(messages) >= 100 and len(set(messages)) >= 100


@pytest.mark.parametrize("line", ["a\nb", "a\rb", "a\u2028b", "\x1b[31ma", "a\x85b"])
def test_control_characters_in_a_message_are_escaped(line):
    assert re.fullmatch(r"[a-b\\\[\]a-z0-9]+", str(errors.RecordError(line)))


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.split(END)[1])
