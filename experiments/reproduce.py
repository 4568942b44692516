"""Reproduces the paper in one command: all stages, the evaluation, a table and figures.

Without flags, it runs the sandbox, which needs only this repository. Run it again with the same flags to resume an
interrupted run.
"""

import command_line

from instructjax.stages import comparisons, evaluate, ppo, ppo_init, pretrain, reward, selection, sft
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Runs all stages in the paper's order."""
    pretrain.run(run)
    sft.run(run)
    if not run.config.ppo.reward_from:  # otherwise the reward model is another run's
        comparisons.collect(run)
        reward.run(run)
    selection.select(run)
    ppo_init.run(run)
    ppo.run(run)
    ppo.run_with_text(run)
    evaluate.evaluate(run)


if __name__ == "__main__":
    command_line.run(main)
