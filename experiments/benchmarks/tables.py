"""Writes the tables of docs/benchmarks.md from the results of speed.py in docs/benchmarks.

python experiments/benchmarks/tables.py

Each file NAME.json becomes a table under its command, in the order of the names. The rest of the page is unchanged.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # as for the scripts of experiments/

from benchmarks.workloads import UNITS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEAKS = "peak_mb", "peak_again_mb"
MARKS = "<!-- tables -->\n", "<!-- the end of the tables -->"


def table(results):
    """Returns the Markdown of one file of results, one line per kind of work."""
    peer = next((side for side in next(iter(results["work"].values()))["medians"] if side != "instructjax"), None)
    sides = ["instructjax", *([peer] if peer else [])]
    columns = ["", *sides, *(["ratio"] if peer else []), "MFU", "s per step", "MB", "MB again"]
    columns += ["memory", "memory again"] if peer else []
    lines = []
    for work, found in results["work"].items():
        medians = [found["medians"][side] for side in sides]
        line = [work, *(f"{number(side['rate'])} {UNITS[work]}/s" for side in medians)]
        line += [f"**{medians[0]['rate'] / medians[1]['rate']:.2f}**"] if peer else []
        line += [f"{found['mfu']:.2f}"]
        line += [", ".join(number(side["seconds"]) for side in medians)]
        line += [", ".join(f"{side[kind]:,.0f}" for side in medians) for kind in PEAKS]
        line += [f"{medians[0][kind] / medians[1][kind]:.2f}" for kind in PEAKS] if peer else []
        lines.append(line)
    return markdown(columns, lines)


def markdown(columns, lines):
    """Returns a Markdown table of cells that are strings."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["-"] * len(columns), *lines))


def number(value):
    """Formats a number with three digits, or with all digits before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def page(folder):
    """Returns all tables of a folder of results, each with its command, machine and versions."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        load = results["load"]
        parts += [
            f"### {results['title']}",
            f"    {results['command']}",
            f"{results['machine']}; {', '.join(f'{name} {version}' for name, version in results['versions'].items())}; "
            f"load {load[0]:.1f} before, {load[-1]:.1f} after.",
            table(results),
        ]
    return "\n\n".join(parts)


def filled(text):
    """Returns the page with the tables of docs/benchmarks between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{page(ROOT / 'docs' / 'benchmarks')}\n\n{MARKS[1]}{after}"


def main():
    """Writes the tables into the page."""
    path = ROOT / "docs" / "benchmarks.md"
    path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
