"""The whole of the paper in one command: every stage, the evaluation, a table and a figure.

Without flags it runs the sandbox, which needs nothing but this repository. Started again
with the same flags, it continues where it stopped.
"""

import command_line

from instructjax.stages import comparisons, evaluate, ppo, ppo_init, pretrain, reward, selection, sft
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Runs all stages in the paper's order."""
    pretrain.run(run)
    sft.run(run)
    if not run.config.ppo.reward_from:  # otherwise another run's reward model is used
        comparisons.collect(run)
        reward.run(run)
    selection.select(run)
    ppo_init.run(run)
    ppo.run(run)
    ppo.run_with_text(run)
    evaluate.evaluate(run)


if __name__ == "__main__":
    command_line.run(main)
