"""Writes docs/claims.md from the results of claims.py for several seeds.

    python experiments/benchmarks/claims_page.py docs/claims/*.json

The tables are written between the marks of the page. The rest of it is unchanged.
"""

import json
import pathlib
import sys

from instructjax.evaluation.paper_claims import CLAIMS
from instructjax.reporting import claims_page

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "claims.md"
MARKS = "<!-- claims -->\n", "<!-- the end of the claims -->"


def filled(text, seeds):
    """Returns the page with the tables of some results between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{claims_page.page(CLAIMS, seeds)}\n\n{MARKS[1]}{after}"


def main(paths):
    """Writes the tables into the page."""
    seeds = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    PAGE.write_text(filled(PAGE.read_text(), seeds))


if __name__ == "__main__":
    main(sys.argv[1:])
