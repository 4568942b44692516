"""The whole of the paper in one command: every stage, the evaluation, a table and a figure.

Without flags it runs the sandbox, which needs nothing but this repository. Started again
with the same flags, it goes on where it stopped.
"""

import command_line

from instructjax.stages import comparisons, evaluate, ppo, ppo_init, pretrain, reward, sft


def main(config, workdir):
    """All stages in the paper's order."""
    pretrain.run(config, workdir)
    sft.run(config, workdir)
    if not config.ppo.reward_from:  # else another run's
        comparisons.run(config, workdir)
        reward.run(config, workdir)
    sft.select(config, workdir)
    ppo_init.run(config, workdir)
    ppo.run_ppo(config, workdir)
    ppo.run_ppo_ptx(config, workdir)
    evaluate.run(config, workdir, command_line.name())


if __name__ == "__main__":
    command_line.run(main)
