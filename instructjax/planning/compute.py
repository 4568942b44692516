"""The compute of a recipe's stages in petaflop/s-days, the unit of the paper's section 5."""

from __future__ import annotations

import dataclasses
import math

import ml_collections

from instructjax.models.flops import FLOPS_PER_PETAFLOP_DAY
from instructjax.planning import programs


@dataclasses.dataclass(frozen=True)
class StageCompute:
    """The compute of a stage. It does not depend on the hardware.

    Attributes:
      name: the stage.
      steps: the number of times that its program runs.
      days: petaflop/s-days of model FLOPs; see `flops`.
      paper: the paper's petaflop/s-days, or None if it reports none.
    """

    name: str
    steps: int
    days: float
    paper: float | None


PAPER = {("175b", "pretrain"): 3640.0, ("175b", "sft"): 4.9, ("175b", "ppo_ptx"): 60.0}  # section 5


def stage_compute(
    config: ml_collections.ConfigDict, demonstrations: int, rankings: int, size: str
) -> list[StageCompute]:
    """Computes the petaflop/s-days of every stage of a recipe.

    Args:
      config: a whole recipe.
      demonstrations: examples of SFT; Table 6 has 12,725.
      rankings: prompts with ranked answers; Table 6 has 33,207.
      size: the model's name in the paper, such as "175b", to look up the paper's figures.
    """
    steps = {
        "pretrain": config.pretrain.steps,
        "sft": math.ceil(demonstrations * config.sft.epochs / config.sft.batch_size),
        "reward": math.ceil(rankings * config.reward.epochs / config.reward.batch_size),
        "ppo_init": max(
            1,
            round(
                config.ppo_init.epochs
                * demonstrations
                / (config.ppo_init.batch_size * (1 - config.ppo_init.text_share))
            ),
        ),
        "ppo": config.ppo.iterations,
        "ppo_ptx": config.ppo.iterations,
    }
    found = []
    for stage, count in steps.items():
        name = f"{stage} iteration" if stage.startswith("ppo") and stage != "ppo_init" else stage
        total = count * programs.build(name, config).work.flops
        found.append(StageCompute(stage, count, total / FLOPS_PER_PETAFLOP_DAY, PAPER.get((size, stage))))
    return found
