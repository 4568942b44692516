"""Trains a policy by DPO (Rafailov et al. 2023) from rankings alone: WORKDIR/dpo.

Needs WORKDIR/sft, its start and reference; where labelers are simulated, their rankings are collected first.
"""

import command_line

from instructjax.errors import ConfigError
from instructjax.stages import comparisons, dpo
from instructjax.stages.run import Run


def main(run: Run) -> None:
    """Collects comparisons, if there are none, and runs DPO."""
    if "dpo" not in run.config:
        raise ConfigError("dpo: expected a section of the recipe, as configs/dpo.py has it, found none")
    comparisons.collect(run)
    dpo.run(run)


if __name__ == "__main__":
    command_line.run(main)
