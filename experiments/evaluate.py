"""Samples from every model of a run, judges the answers, and writes results.json and report.md.

Needs the other stages in WORKDIR.
"""

import command_line

from instructjax.stages import evaluate

if __name__ == "__main__":
    command_line.run(evaluate.evaluate)
