"""Trains PPO's initial policy, then PPO and PPO-ptx: WORKDIR/ppo_init, ppo and ppo_ptx.

Needs WORKDIR/pretrain and WORKDIR/reward. Use --stages to run only some of the stages.
"""

import command_line
from absl import flags

from instructjax.stages import ppo, ppo_init
from instructjax.stages.run import Run

STAGES = {stage.declaration.name: stage for stage in (ppo_init.run, ppo.run, ppo.run_with_text)}
_STAGES = flags.DEFINE_multi_enum(
    "stages", list(STAGES), list(STAGES), "The stages to run; repeat the flag for several."
)


def main(run: Run) -> None:
    """Runs the stages of --stages in the paper's order."""
    run.require(*_STAGES.value)
    for name, stage in STAGES.items():
        if name in _STAGES.value:
            stage(run)


if __name__ == "__main__":
    command_line.run(main)
