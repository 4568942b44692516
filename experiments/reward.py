"""Trains the reward model on rankings and chooses the SFT checkpoint by it: WORKDIR/reward. Needs WORKDIR/sft.

Where the labelers are simulated, the rankings are collected first.
"""

import command_line

from instructjax.stages import comparisons, reward, sft


def main(config, workdir):
    """Comparisons, reward model, selection."""
    comparisons.run(config, workdir)
    reward.run(config, workdir)
    sft.select(config, workdir)


if __name__ == "__main__":
    command_line.run(main)
