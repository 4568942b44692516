"""InstructGPT as published, at the paper's three sizes.

Reproduces: Ouyang et al. 2022 (arXiv 2203.02155), sections 3.4 and 3.5, appendix C.
Cost:       at 175B, 4.9 petaflop/s-days for SFT and 60 for PPO-ptx (table in section 5).
Expected:   175B PPO-ptx preferred to 175B SFT in 73.4 +- 2 % of the prompts (section 4.1).
Command:    python experiments/reproduce.py --config=configs/instructgpt.py:1p3b \\
                --config.files.text=... --config.files.demonstrations=... \\
                --config.files.rankings=... --config.files.prompts=... --workdir=...

Variants:   1p3b, 6b, 175b: the policy's size. Reward model and value network have 6B in all
            three: run 6b first, and use its reward model in the others with ppo.reward_from.
Planned:    (compiled, not run: docs/scaling.md)
            1p3b on TPU v5e:4x4, parallel.fsdp=4, parallel.tensor=4, ppo.rollout_parts=4, ppo.microbatches=4,
            ppo.frozen_dtype=bfloat16, pretrain.microbatches=16, reward.microbatches=16;
            6b on TPU v5p:4x4x4, parallel.fsdp=8, parallel.tensor=8;
            175b on TPU v5p:8x8x8, parallel.fsdp=16, parallel.tensor=32, but SFT, with batches of 8, on v5p:4x8x8 with
            parallel.fsdp=8.

The keys, with range, unit and source of each value, are declared in instructjax/recipe; docs/recipe.md lists them. This
file sets the values that depend on the policy's size. The other recipes start from it and explain their changes.
"""

from ml_collections import ConfigDict

from instructjax.models import sizes
from instructjax.recipe import declared

# The policy's size in GPT-3's table; learning rates and batch sizes of SFT (C.1) and of PPO's initial policy (C.3);
# the learning rates of PPO (within the range in E.9) and of the value network (C.4).
VARIANTS = {
    "1p3b": dict(size="xl", sft=(9.65e-6, 32), ppo_init=(5e-6, 32), ppo=8.06e-6, value=9e-6),
    "6b": dict(size="6.7b", sft=(9.65e-6, 32), ppo_init=(1.04e-5, 32), ppo=8.06e-6, value=9e-6),
    "175b": dict(size="175b", sft=(5.03e-6, 8), ppo_init=(2.45e-6, 8), ppo=2.55e-6, value=5e-6),
}


def get_config(variant: str = "1p3b") -> ConfigDict:
    """Returns the recipe for one of the paper's three sizes."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/instructgpt.py: expected a variant among {', '.join(VARIANTS)}, found {variant!r}")
    row = VARIANTS[variant]
    gpt3 = sizes.SIZES[row["size"]]
    config = declared.paper()

    shape = sizes.gpt3_config(row["size"])
    for name in ("num_layers", "d_model", "num_heads", "d_head", "d_ff"):
        config.model[name] = getattr(shape, name)

    pretrain = config.pretrain
    # GPT-3, table 2.1: 1M, 2M and 3.2M tokens, rounded to a multiple of 64 windows, so that devices can share them.
    pretrain.batch_size = 64 * round(gpt3.batch_tokens / pretrain.length / 64)
    batch_tokens = pretrain.batch_size * pretrain.length
    pretrain.steps = round(300e9 / batch_tokens)  # GPT-3: 300B tokens
    pretrain.warmup_steps = round(375e6 / batch_tokens)  # GPT-3: 375M tokens
    pretrain.learning_rate = gpt3.learning_rate

    for stage in ("sft", "ppo_init"):
        config[stage].learning_rate, config[stage].batch_size = row[stage]
    config.reward.size = "" if variant == "6b" else "6.7b"  # C.2: 6B for all policies
    config.ppo.update(learning_rate=row["ppo"], value_learning_rate=row["value"])
    return config.lock()
