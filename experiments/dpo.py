"""Trains a policy by DPO (Rafailov et al. 2023) from rankings alone: WORKDIR/dpo.

Needs WORKDIR/sft, its start and reference; where labelers are simulated, their rankings are collected first.
"""

import command_line

from instructjax.recipe import check
from instructjax.recipe.stage_keys import DPO
from instructjax.stages import comparisons, dpo
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Collects comparisons, if there are none, and runs DPO."""
    check.section(run.config, "dpo", DPO)
    comparisons.collect(run)
    dpo.run(run)


if __name__ == "__main__":
    command_line.run(main)
