"""A recipe next to the paper's, and the page of all keys, which is written from the declarations."""

import pathlib
import re

import pytest

from configs import dpo, instructgpt, sandbox
from instructjax.recipe import declared, listing
from tests import scripts

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "recipe.md"


def test_the_page_is_up_to_date():
    """To update it, run `python experiments/config.py --markdown > docs/recipe.md`."""
    assert PAGE.read_text() == listing.markdown()


def test_the_page_has_every_key():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(dict(declared.declared_keys())) + len(declared.RENAMED)
    assert all(row.count("|") == 7 for row in rows[: -len(declared.RENAMED)])


def test_rows_are_all_keys_of_a_recipe():
    config = dpo.get_config()
    rows = listing.rows(config)
    assert len({(row.section, row.name) for row in rows}) == len(rows)
    for row in rows:
        value = config[row.section][row.name] if row.section else config[row.name]
        assert row.value == listing.as_text(value)
    assert {row.section for row in rows} == {"", *config} - {"seed", "invariants"}


def test_the_papers_recipe_does_not_differ_from_itself():
    assert not [row for row in listing.rows(instructgpt.get_config()) if row.is_changed or row.is_added]


def test_differences_are_marked_with_the_papers_value():
    rows = {(row.section, row.name): row for row in listing.rows(sandbox.get_config())}
    row = rows["ppo", "kl_coefficient"]
    assert (row.is_changed, row.is_added, row.paper, row.unit, row.source) == (
        True,
        False,
        "0.02",
        "reward per nat",
        "C.4",
    )
    assert not rows["ppo", "clip_ratio"].is_changed
    assert rows["sandbox", "labelers"].is_added and not rows["sandbox", "labelers"].is_changed
    assert rows["data", "separator"].value == '"\\n"'


def test_a_section_that_is_declared_elsewhere_is_listed_without_units():
    config = sandbox.get_config().unlock()
    config.mine = {"beta": 0.5}
    assert listing.rows(config)[-1] == listing.Row("mine", "beta", "0.5", None)


def printed(*flags):
    return scripts.run("config.py", *flags).splitlines()


def test_the_script_prints_every_key():
    lines = printed("--config=configs/sandbox.py", "--config.ppo.kl_coefficient=0.05")
    rows = listing.rows(sandbox.get_config())
    assert len([line for line in lines if line[:2] in ("  ", "* ", "+ ")]) - 2 == len(rows)
    (line,) = (line for line in lines if "kl_coefficient" in line)
    assert line.split() == "* kl_coefficient 0.05 reward per nat paper: 0.02 C.4".split()
    assert not any("\x1b" in line for line in lines)  # no colors in a pipe


def test_the_script_prints_the_differences():
    lines = printed("--config=configs/instructgpt.py", "--config.seed=3", "--changed")
    assert re.fullmatch(r"configs/instructgpt.py: \d+ keys", lines[0]) and lines[1].startswith("* 1 differ ")
    assert [line.split() for line in lines[-1:]] == [["*", "seed", "3", "default:", "0"]]
    assert len(printed("--config=configs/instructgpt.py", "--changed")) == 3


def test_the_script_prints_the_page():
    assert "\n".join(printed("--markdown")) + "\n" == PAGE.read_text()


@pytest.mark.parametrize("value", ["a b", "", "a\nb", 3, 0.1, None, ("a",), True])
def test_a_value_is_one_line(value):
    assert "\n" not in listing.as_text(value)


@pytest.mark.parametrize(("given", "found"), [(r"\n\n", "\n\n"), (r"\t\\n", "\t\\n"), ("\n", "\n"), (" ### ", " ### ")])
def test_escapes_in_a_separator_from_a_shell_are_read(given, found):
    for flags in ([f"--config.data.separator={given}"], ["--config.data.separator", given]):
        lines = scripts.run("config.py", *flags)
        assert re.search(rf"separator +{re.escape(listing.as_text(found))} ", lines)
