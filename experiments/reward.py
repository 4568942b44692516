"""Trains the reward model on rankings, and chooses the SFT checkpoint with it: WORKDIR/reward.

Needs WORKDIR/sft. If the labelers are simulated, the rankings are collected first.
"""

import command_line

from instructjax.stages import comparisons, reward, selection
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Collects comparisons, trains the reward model, and chooses the SFT checkpoint."""
    comparisons.collect(run)
    reward.run(run)
    selection.select(run)


if __name__ == "__main__":
    command_line.run(main)
