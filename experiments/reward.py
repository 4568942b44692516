"""Trains the reward model on rankings, and chooses the SFT checkpoint with it: WORKDIR/reward.

Needs rankings and WORKDIR/sft, or reward.init_from. Without prompts, no SFT checkpoint is chosen.
If the labelers are simulated, the rankings are collected first.
"""

import command_line

from instructjax.records import Prompt
from instructjax.stages import comparisons, reward, selection
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Collects comparisons, trains the reward model, and chooses the SFT checkpoint."""
    run.require("comparisons", "reward")
    comparisons.collect(run)
    reward.run(run)
    if run.has(Prompt) and run.is_finished("sft"):
        selection.select(run)
    else:
        print("sft: its checkpoint is not chosen, which needs prompts and WORKDIR/sft")


if __name__ == "__main__":
    command_line.run(main)
