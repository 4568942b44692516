"""Reproduces the paper in one command: all stages, the evaluation, a table and figures.

Without flags, it runs the sandbox, which needs only this repository. Run it again with the same flags to resume an
interrupted run.
"""

import command_line
from absl import flags

from instructjax.runs import folder, progress
from instructjax.stages import comparisons, evaluate, ppo, ppo_init, pretrain, public_tasks, reward, selection, sft
from instructjax.stages.run import Run

_WITHOUT = flags.DEFINE_enum("without", None, ["ppo", "ppo_ptx"], "Leave out PPO or PPO-ptx, also in reports.")


def main(run: Run) -> None:
    """Runs all stages in the paper's order."""
    stages = {
        "pretrain": pretrain.run,
        "sft": sft.run,
        "comparisons": comparisons.collect,
        "reward": reward.run,
        "select": selection.select,
        "ppo_init": ppo_init.run,
        "ppo": ppo.run,
        "ppo_ptx": ppo.run_with_text,
        "tasks": public_tasks.measure,
        "evaluate": evaluate.evaluate,
    }
    if not run.config.evaluate.tasks:
        del stages["tasks"]
    if _WITHOUT.value:
        del stages[_WITHOUT.value]
    if run.config.ppo.reward_from or run.config.ppo.reward_function:  # another run's reward model, or none
        del stages["comparisons"], stages["reward"]
    run.require(*stages)
    if run.config.evaluate.tasks:
        public_tasks.check(run)
    both = not _WITHOUT.value and not folder.began(run.workdir, "ppo_ptx")
    at_least = {"ppo_ptx": "ppo"} if both else {}
    with progress.Stages(list(stages), at_least=at_least) as names:
        for name in names:
            stages[name](run)


if __name__ == "__main__":
    command_line.run(main)
