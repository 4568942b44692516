"""The compute of a recipe's stages, in the unit of the paper's section 5."""

from __future__ import annotations

import dataclasses
import math

import ml_collections

from instructjax.planning import programs
from instructjax.planning.flops import FLOPS_OF_A_DAY


@dataclasses.dataclass(frozen=True)
class Stage:
    """The compute of a stage, which no hardware changes.

    Attributes:
      name: of the stage.
      steps: how often its program runs.
      days: petaflop/s-days that the mathematics asks for.
      paper: those of the paper, or None where it gives none.
    """

    name: str
    steps: int
    days: float
    paper: float | None


PAPER = {("175b", "pretrain"): 3640.0, ("175b", "sft"): 4.9, ("175b", "ppo_ptx"): 60.0}  # section 5


def stages(config: ml_collections.ConfigDict, demonstrations: int, rankings: int, size: str) -> list[Stage]:
    """The compute of all stages of a recipe.

    Args:
      config: a whole recipe.
      demonstrations: examples of SFT; Table 6 has 12,725.
      rankings: prompts with ranked answers; Table 6 has 33,207.
      size: the paper's name of the model, whose figures stand beside.
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
    for stage, times in steps.items():
        name = f"{stage} iteration" if stage.startswith("ppo") and stage != "ppo_init" else stage
        total = times * programs.build(name, config).work.flops
        found.append(Stage(stage, times, total / FLOPS_OF_A_DAY, PAPER.get((size, stage))))
    return found
