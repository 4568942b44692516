"""Answers prompts with a trained policy.

Prompts are given with --prompt, or one per line on standard input.

python experiments/sample.py --workdir=runs/sandbox --stage=ppo_ptx --prompt="tell me about the fox ."
"""

import os
import sys
from collections.abc import Iterator, Sequence

import command_line
import jax
from absl import flags

from instructjax.errors import InputError
from instructjax.stages import evaluate
from instructjax.stages.run import Run
from instructjax.training import parallel

_STAGE = flags.DEFINE_string(
    "stage", "ppo_ptx", "The stage whose policy answers: pretrain, sft, ppo_init, ppo, ppo_ptx, or a guest such as dpo."
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; repeat the flag for several.")
_SEED = flags.DEFINE_integer("seed", 0, "The random seed of the samples.", lower_bound=0, upper_bound=2**32 - 1)


def main(run: Run) -> None:
    """Prints each prompt with its answer."""
    asked = list(_prompts())
    if not asked:
        raise InputError("--prompt: expected a prompt, here or in standard input, found none")
    with parallel.on_mesh(run.config.parallel):
        _answer(run, asked)


def _answer(run: Run, asked: Sequence[tuple[str, str]]) -> None:
    policy, layout = run.open_policy(_STAGE.value)
    for where, prompt in asked:
        layout.encode_prompt(prompt, where)  # rejects a prompt that is too long
    prompts = [prompt for _, prompt in asked]
    for prompt, answer in evaluate.answer(run, policy, layout, prompts, jax.random.key(_SEED.value)):
        print(f"{prompt}\n  -> {answer}\n")


def _prompts() -> Iterator[tuple[str, str]]:
    """Yields (where the prompt was given, the prompt)."""
    given = [("--prompt", os.fsencode(prompt)) for prompt in _PROMPT.value]
    for where, prompt in given or ((f"standard input:{i}", line) for i, line in enumerate(sys.stdin.buffer, start=1)):
        try:
            text = prompt.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected UTF-8, found {error.reason}") from None
        if text:
            yield where, text


if __name__ == "__main__":
    command_line.read(main)
