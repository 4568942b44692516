"""Prints a recipe: every key with its value, unit and source, and the differences from the paper.

    python experiments/config.py --config=configs/sandbox.py --changed

Runs and writes nothing. docs/recipe.md describes the keys.
"""

import command_line
from absl import flags
from rich.console import Console
from rich.text import Text

from instructjax.recipe import listing
from instructjax.stages.run import Run

_CHANGED = flags.DEFINE_boolean("changed", False, "Print only the keys that differ from the paper's recipe for 1.3B.")
_MARKDOWN = flags.DEFINE_boolean("markdown", False, "Print docs/recipe.md instead, which describes all keys.")


def main(run: Run) -> None:
    """Prints the recipe."""
    if _MARKDOWN.value:
        print(listing.markdown(), end="")
        return
    console = Console(highlight=False)
    for line in lines(listing.rows(run.config), command_line.name(), only_changed=_CHANGED.value):
        console.print(line, soft_wrap=True)


def lines(rows: list[listing.Row], recipe: str, *, only_changed: bool) -> list[Text]:
    """Returns the lines to print: a summary, and each section with its keys."""
    changed, added = (sum(getattr(row, name) for row in rows) for name in ("is_changed", "is_added"))
    found = [
        Text.assemble((recipe, "bold"), f": {len(rows)} keys"),
        Text.assemble(("*", "bold yellow"), f" {changed} differ from the paper's recipe for 1.3B"),
        Text.assemble(("+", "bold cyan"), f" {added} are not in it"),
    ]
    shown = [row for row in rows if row.is_changed or row.is_added or not only_changed]
    cells = {row: (row.name, row.value, row.unit, _reference(row)) for row in shown}
    widths = [max(map(len, column)) for column in zip(*cells.values(), strict=True)]
    section = None
    for row in shown:
        if row.section != section:
            section = row.section
            found += [Text(), Text.assemble((section or "recipe", "bold"), ("  " + listing.about(section), "dim"))]
        mark, style = ("*", "bold yellow") if row.is_changed else ("+", "bold cyan") if row.is_added else (" ", "")
        name, value, unit, paper = (cell.ljust(width) for cell, width in zip(cells[row], widths, strict=True))
        line = Text.assemble((mark, style), " ", name, "  ", (value, style), "  ", unit, "  ")
        line.append_text(Text.assemble((paper, "yellow"), "  ", (row.source, "dim")))
        line.rstrip()
        found.append(line)
    return found


def _reference(row: listing.Row) -> str:
    return f"{'paper' if row.source else 'default'}: {row.paper}" if row.is_changed else ""


if __name__ == "__main__":
    command_line.read(main)
