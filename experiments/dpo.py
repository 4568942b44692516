"""Trains a policy by DPO (Rafailov et al. 2023) on rankings: WORKDIR/dpo.

Needs WORKDIR/sft, which is both the initial policy and the reference. If the labelers are simulated and there are no
rankings yet, rankings are collected first.
"""

import command_line

from instructjax.recipe import check
from instructjax.recipe.stage_keys import DPO
from instructjax.stages import comparisons, dpo
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Collects comparisons if there are none, and runs DPO."""
    check.section(run.config, "dpo", DPO)
    run.require("dpo")
    comparisons.collect(run)
    dpo.run(run)


if __name__ == "__main__":
    command_line.run(main)
