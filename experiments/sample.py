"""Answers prompts with a trained model: from --prompt, or one a line from standard input.

python experiments/sample.py --workdir=runs/sandbox --stage=ppo_ptx --prompt="tell me about the fox ."
"""

import sys

import command_line
import jax
from absl import flags

from instructjax.stages import evaluate, workspace

_STAGE = flags.DEFINE_string(
    "stage", "ppo_ptx", "Whose policy answers: pretrain, sft, ppo_init, ppo, ppo_ptx, or a guest's stage, such as dpo."
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; repeat the flag for several.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")


def main(config, workdir):
    """Prints each prompt with its answer."""
    policy, layout = workspace.open_policy(workdir, _STAGE.value)
    prompts = _PROMPT.value or [line.strip() for line in sys.stdin if line.strip()]
    for prompt, answer in evaluate.answer(config, layout, policy, prompts, jax.random.key(_SEED.value)):
        print(f"{prompt}\n  -> {answer}\n")


if __name__ == "__main__":
    command_line.read(main)
