"""Writes the tables of docs/claims.md from the results of claims.py in docs/claims, one file per seed.

python experiments/benchmarks/claims_page.py

The rest of the page is unchanged.
"""

import pathlib

from instructjax.evaluation.paper_claims import CLAIMS
from instructjax.reporting import claims_page

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
MARKS = "<!-- claims -->\n", "<!-- the end of the claims -->"


def filled(text, seeds):
    """Returns the page with the tables of some results between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{claims_page.page(CLAIMS, seeds)}\n\n{MARKS[1]}{after}"


def main():
    """Writes the tables into the page."""
    path = DOCS / "claims.md"
    path.write_text(filled(path.read_text(), claims_page.read(DOCS / "claims")))


if __name__ == "__main__":
    main()
