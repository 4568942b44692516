"""The recipes of device.py: the paper's with 124M and 1.3B parameters, and batches that one H100 or eight v5e hold."""

import jax
import numpy as np

from benchmarks import workloads
from configs import instructgpt
from instructjax.models import sizes
from instructjax.planning import plan, shapes

WORK = {  # parts of the benchmark, and the programs that share one state in each
    "sft": ("sft",),
    "reward": ("reward",),
    "ppo": ("ppo rollout", "ppo iteration"),
}
PROGRAMS = [name for names in WORK.values() for name in names]
SIZES = {  # the name in `models.sizes`, rows, and the parts in which they are computed
    "124M": dict(size="small", sft=64, reward=32, episodes=128, minibatch=64, parts=2),
    "1.3B": dict(size="xl", sft=32, reward=16, episodes=64, minibatch=32, parts=2),
}
LENGTH, ANSWERS = 512, 4  # tokens of a prompt, and of an answer; answers per ranking
UNITS = {"sft": "tokens", "reward": "rankings", "ppo rollout": "new tokens", "ppo iteration": "episodes"}
# For rehearsals: sizes for which a CPU compiles and runs each program in seconds.
TINY_MODEL = dict(num_layers=2, d_model=64, num_heads=2, d_head=32, d_ff=128, max_length=64)
TINY = dict(sft=16, reward=16, episodes=16, minibatch=16, parts=2)
SHORT_SMOKE = (
    *("--config.pretrain.steps=4", "--config.sft.epochs=1", "--config.sft.candidates=1", "--config.ppo.iterations=1"),
    *("--config.sandbox.documents=400", "--config.sandbox.reward_prompts=300", "--config.sandbox.prompts=300"),
    *("--config.comparisons.prompts=40", "--config.evaluate.prompts=20", "--config.evaluate.text_windows=8"),
)


def recipe(size, *, rehearse=False, **changed):
    """Returns the recipe of one size. All devices share the weights, and all networks have the same size.

    Keys are changed by name, with two underscores instead of the dot.
    """
    row, length = SIZES[size], LENGTH
    shape = sizes.gpt3_config(row["size"], max_length=2 * LENGTH)
    model = {
        name: getattr(shape, name) for name in ("num_layers", "d_model", "num_heads", "d_head", "d_ff", "max_length")
    }
    changes = {"tokenizer.vocab_size": shape.vocab_size}
    if rehearse:
        row, length, model = {**row, **TINY}, TINY_MODEL["max_length"] // 2, TINY_MODEL
        changes = {"tokenizer.vocab_size": 256, "model.local_window": 16}
    changes |= {f"model.{name}": value for name, value in model.items()}
    changes |= {f"data.{name}": length for name in ("max_prompt", "max_response")}
    changes |= {"sft.batch_size": row["sft"], "sft.microbatches": row["parts"]}
    changes |= {"reward.size": "", "reward.batch_size": row["reward"], "reward.microbatches": row["parts"]}
    changes |= {"comparisons.max_answers": ANSWERS, "optimizer.first_moment_dtype": "bfloat16"}
    changes |= {"ppo.batch_size": row["episodes"], "ppo.minibatch_size": row["minibatch"]}
    changes |= {"ppo.microbatches": row["parts"], "ppo.frozen_dtype": "bfloat16"}
    changes |= {name.replace("__", "."): value for name, value in changed.items()}
    return plan.override(instructgpt.get_config(), changes)


def batch(program, config):
    """Returns random rows for a program of PROGRAMS: full texts, rankings of full answers, or full prompts."""
    shape, _ = shapes.model_configs(config)
    prompt, response = config.data.max_prompt, config.data.max_response
    if program == "sft":
        return workloads.language_model_batch(shape, config.sft.batch_size, prompt + response)
    if program == "reward":
        return workloads.ranking_batch(shape, config.reward.batch_size, config.comparisons.max_answers, prompt)
    prompts = workloads.prompt_batch(shape, np.full(config.ppo.batch_size, prompt), prompt)
    return jax.device_get(prompts) if program == "ppo rollout" else (jax.device_get(prompts), None)


def units(program, config):
    """Returns how many of UNITS one run of a program has."""
    data, ppo = config.data, config.ppo
    return {
        "sft": config.sft.batch_size * (data.max_prompt + data.max_response),
        "reward": config.reward.batch_size,
        "ppo rollout": ppo.batch_size * data.max_response,
        "ppo iteration": ppo.batch_size,
    }[program]
