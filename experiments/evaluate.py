"""Samples answers from every model of a run, judges them, and writes WORKDIR/results.json and report.md.

Needs all other stages in WORKDIR.
"""

import command_line

from instructjax.stages import evaluate

if __name__ == "__main__":
    command_line.run(evaluate.evaluate)
