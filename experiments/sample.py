"""Answers prompts with a trained policy, or with one whose stage is in progress.

Prompts are given with --prompt, or on standard input: one per line, or one in all with --whole_input. They are taken as
they are, with their spaces, as in training.

python experiments/sample.py --workdir=runs/sandbox --stage=ppo_ptx --prompt="tell me about the fox ."
"""

import os
import sys
from collections.abc import Iterator, Sequence

import command_line
import jax
from absl import flags

from instructjax.errors import InputError
from instructjax.stages import answers
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel

_STAGE = flags.DEFINE_string(
    "stage", "ppo_ptx", "The stage whose policy answers: pretrain, sft, ppo_init, ppo, ppo_ptx, or a guest such as dpo."
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    'The step of the checkpoint, or "best" for the largest validation_reward; by default the newest, or the one that '
    "was chosen for sft.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; repeat the flag for several.")
_WHOLE = flags.DEFINE_boolean("whole_input", False, "Read standard input as one prompt, such as a dialogue.")
_SEED = flags.DEFINE_integer("seed", 0, "The random seed of the samples.", lower_bound=0, upper_bound=2**32 - 1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Of the samples; 0 for the most likely tokens. By default evaluate.temperature.", lower_bound=0
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw only the k most likely tokens; 0 for all.", lower_bound=0)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw only the most likely tokens that together have this probability.", lower_bound=0, upper_bound=1
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "The most tokens of an answer; by default the policy's data.max_response.", lower_bound=1
)
_STOP = flags.DEFINE_multi_string("stop", [], "Cut answers before this text; repeat the flag for several.")

READ = ("seed", "evaluate.temperature", "evaluate.batch_size", "parallel.")  # keys that have an effect here


def main(run: Run) -> None:
    """Prints each prompt with its answer."""
    for key in command_line.given_keys():
        if not key.startswith(READ):
            raise InputError(
                f"--config.{key}: expected one of {', '.join(READ)}, found a key without effect on a policy, which "
                "keeps the recipe that it was trained with; see --help for flags"
            )
    asked = list(_prompts())
    if not asked:
        raise InputError("--prompt: expected a prompt, here or in standard input, found none")
    with parallel.on_mesh(run.config.parallel):
        _answer(run, asked)


def _answer(run: Run, asked: Sequence[tuple[str, str]]) -> None:
    policy, layout = run.open_policy(_STAGE.value, _step())
    for where, prompt in asked:
        layout.encode_prompt(prompt, where)  # rejects a prompt that is too long
    section, temperature = run.config.evaluate, _TEMPERATURE.value
    sampling = Sampling(
        temperature=section.temperature if temperature is None else temperature,
        batch_size=section.batch_size,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        max_tokens=_MAX_TOKENS.value,
        stop=tuple(_STOP.value),
    )
    prompts = [prompt for _, prompt in asked]
    for prompt, answer in answers.answer(policy, layout, prompts, jax.random.key(_SEED.value), sampling):
        print(f"{prompt}\n  -> {answer}\n")


def _step() -> int | str | None:
    found = _STEP.value
    if found in (None, "best"):
        return found
    if not found.isdecimal() or len(found) > 18:
        raise InputError(f'--step: expected the step of a checkpoint, or "best", found {found!r:.50}')
    return int(found)


def _prompts() -> Iterator[tuple[str, str]]:
    """Yields (where the prompt was given, the prompt)."""
    given = [("--prompt", os.fsencode(prompt)) for prompt in _PROMPT.value]
    for where, prompt in given or _input():
        try:
            text = prompt.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected UTF-8, found {error.reason}") from None
        if text.strip():
            yield where, text


def _input() -> Iterator[tuple[str, bytes]]:
    """Yields the prompts on standard input without the line break at their end."""
    parts = [sys.stdin.buffer.read()] if _WHOLE.value else sys.stdin.buffer
    for number, part in enumerate(parts, start=1):
        yield f"standard input:{number}", part.removesuffix(b"\n").removesuffix(b"\r")


if __name__ == "__main__":
    command_line.read(main)
