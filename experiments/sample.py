"""Answers prompts with policies, also of stages in progress, in batches or in a chat.

    python experiments/sample.py --workdir=runs/sandbox --prompt="tell me about the fox ."
    python experiments/sample.py --workdir=runs/sandbox --stage=all --rewards --prompt="tell me about the fox ."
    python experiments/sample.py --workdir=runs/sandbox --samples=16 --best --prompts=in.jsonl --output=out.jsonl
    python experiments/sample.py --workdir=runs/sandbox --chat
    python experiments/sample.py --workdir=runs/sandbox --refill=8 --prompts=in.jsonl --output=out.jsonl

Prompts are given with --prompt, in a file of records with --prompts, or on standard input: one per line, or one in all
with --whole_input. They are taken as they are, with their spaces, as in training. In a chat, each line is a message; a
blank line begins another conversation.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import command_line
import jax
import numpy as np
from absl import flags
from etils import epath

from instructjax import files, records
from instructjax.conversation import Message, as_prompt
from instructjax.errors import InputError
from instructjax.models.config import DECODING_DTYPES
from instructjax.records import Prompt
from instructjax.rollout import samplers
from instructjax.runs import folder, processes, progress
from instructjax.stages import answers, rewards
from instructjax.stages.answers import Policy, Sampling
from instructjax.stages.run import Run, Step
from instructjax.training import parallel

_STAGE = flags.DEFINE_list(
    "stage",
    ["ppo_ptx"],
    "The stages whose policies answer, side by side: pretrain, sft, ppo_init, ppo, ppo_ptx, or a guest such as dpo; "
    "all means every stage of the paper that has a policy and a checkpoint.",
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    'The step of the checkpoint, or "best" for the largest validation_reward; by default the newest, or the one that '
    "was chosen for sft.",
)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; repeat the flag for several.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts, .jsonl or .jsonl.gz; see docs/formats.md.")
_WHOLE = flags.DEFINE_boolean("whole_input", False, "Read standard input as one prompt, such as a dialogue.")
_CHAT = flags.DEFINE_boolean("chat", False, "Continue conversations with the user's messages, line by line.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Answers of each policy to each prompt.", lower_bound=1)
_BEST = flags.DEFINE_boolean("best", False, "Keep only the answer with the largest reward: best of --samples.")
_REWARDS = flags.DEFINE_boolean("rewards", False, "Add the scores of the run's reward model.")
_OUTPUT = flags.DEFINE_string("output", None, "Write the answers to a file, .jsonl, instead of printing them.")
_SEED = flags.DEFINE_integer("seed", 0, "The random seed of the samples.", lower_bound=0, upper_bound=2**32 - 1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "0 takes the most likely tokens. By default evaluate.temperature.", lower_bound=0
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw only the k most likely tokens; 0 for all.", lower_bound=0)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw only the most likely tokens that together have this probability.", lower_bound=0, upper_bound=1
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "The maximum length of an answer, in tokens; by default data.max_response.", lower_bound=1
)
_REFILL = flags.DEFINE_integer(
    "refill",
    0,
    "Continuous batching: refill a device once this many of its rows are idle; 0 answers one batch after the other. "
    "Changes no answer.",
    lower_bound=0,
)
_STOP = flags.DEFINE_multi_string("stop", [], "Cut answers before this text; repeat the flag for several.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, DECODING_DTYPES, "The type of the weights that sample; by default that of training."
)

READ = ("seed", "evaluate.temperature", "evaluate.batch_size", "parallel.")  # keys that have an effect here

Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], list[np.ndarray]]


def main(run: Run) -> None:
    """Prints each prompt with its answers, or writes them to a file, or chats."""
    for key in command_line.given_keys():
        if not key.startswith(READ):
            raise InputError(
                f"--config.{key}: expected one of {', '.join(READ)}, found a key without effect on a policy, which "
                "keeps the recipe that it was trained with; see --help for flags"
            )
    _check_flags()
    output = _output()
    asked = [] if _CHAT.value else _prompts()
    if not (asked or _CHAT.value):
        raise InputError("--prompt: expected a prompt, here or in standard input, found none")
    with parallel.on_mesh(run.config.parallel):
        stages, step = _stages(run), _step()
        answers.check_prompts(run, stages, asked, step)
        score = _score(run) if _REWARDS.value or _BEST.value else None
        if _CHAT.value:
            _chat(run, {stage: run.open_policy(stage, step) for stage in stages}, score)
            return
        found = _answer(run, stages, step, score, asked)
    if output is None:
        print("".join(map(_shown, found)), end="")
    else:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        processes.first(lambda: files.write_text(output, lines))
        print(f"{output}: {sum(len(line['responses']) for line in found)} answers to {len(found)} prompts")


def _answer(
    run: Run, stages: Sequence[str], step: Step, score: Score | None, asked: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """Returns each prompt's record with "responses", their "models" and, if they are scored, their "rewards"."""
    lines: list[dict[str, Any]] = [
        {**json.loads(records.to_json(record)), "responses": [], "models": []} for record in asked
    ]
    count = _SAMPLES.value
    keys = [functools.partial(samplers.prompt_keys, jax.random.key(_SEED.value))] * len(stages)
    policies = [functools.partial(run.open_policy, stage, step) for stage in stages]
    counts = [[count] * len(asked)] * len(stages)
    with progress.Bar("answers", len(stages) * len(asked) * count, "answer") as bar:
        answered = answers.answer_in_turn(policies, asked, counts, keys, _sampling(run), bar)
        for stage, texts in zip(stages, answered, strict=True):
            given = score(asked, texts) if score else None
            for i, line in enumerate(lines):
                kept = [int(np.argmax(given[i]))] if given and _BEST.value else range(count)
                line["responses"] += [texts[i][k] for k in kept]
                line["models"] += [stage] * len(kept)
                if given:
                    line.setdefault("rewards", []).extend(float(given[i][k]) for k in kept)
    return lines


def _shown(line: Mapping[str, Any]) -> str:
    """Returns a prompt and its answers as text, with the names of the policies if there are several."""
    names, prompt = line["models"], line["prompt"]
    if not isinstance(prompt, str):  # messages
        prompt = as_prompt([Message(**message) for message in prompt])
    width = max(map(len, names)) if len(set(names)) > 1 else 0
    parts = [f"{prompt}\n"]
    for i, text in enumerate(line["responses"]):
        name = f"{names[i]:{width}} " if width else ""
        reward = f"{line['rewards'][i]:6.2f} " if "rewards" in line else ""
        parts.append(f"  {name}{reward}-> {text}\n")
    return "".join([*parts, "\n"])


def _chat(run: Run, policies: Mapping[str, Policy], score: Score | None) -> None:
    """Answers line by line. Each policy continues its own conversation, and forgets messages that do not fit."""
    said: dict[str, list[Message]] = {stage: [] for stage in policies}
    for turn, line in enumerate(_said()):
        if not line.strip():
            said = {stage: [] for stage in policies}
            continue
        for stage, (policy, layout) in policies.items():
            messages = [*said[stage], Message("user", line)]
            while len(messages) > 1 and layout.count_prompt(as_prompt(messages)) > layout.max_prompt:
                messages = messages[2:]
            if forgotten := 1 + len(said[stage]) - len(messages):
                print(f"  ({stage} forgets {forgotten} messages)")
            record = Prompt(prompt=as_prompt(messages), where=f"standard input:{turn + 1}")
            layout.encode_prompt(record.prompt, record.where)
            key = jax.random.fold_in(jax.random.key(_SEED.value), turn)
            drawn = answers.answer(policy, layout, [record.prompt] * _SAMPLES.value, key, _sampling(run))
            texts = [text for _, text in drawn]
            given = score([record], [texts])[0] if score else np.zeros(len(texts))
            for k in [int(np.argmax(given))] if _BEST.value else range(len(texts)):
                name = f"{stage} " if len(policies) > 1 else ""
                print(f"  {name}{f'{given[k]:.2f} ' if score else ''}-> {texts[k]}", flush=True)
            said[stage] = [*messages, Message("assistant", texts[int(np.argmax(given))])]


def _said() -> Iterator[str]:
    """Yields the lines of standard input."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        if not (line := sys.stdin.buffer.readline()):
            return
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def _sampling(run: Run) -> Sampling:
    section, temperature = run.config.evaluate, _TEMPERATURE.value
    return Sampling(
        temperature=section.temperature if temperature is None else temperature,
        batch_size=section.batch_size,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        max_tokens=_MAX_TOKENS.value,
        stop=tuple(_STOP.value),
        refill=_REFILL.value,
        dtype=_DTYPE.value or "",
    )


def _score(run: Run) -> Score:
    """Returns the scores of the run's reward model."""
    reward, layout = run.open_reward_model()
    size = run.config.evaluate.batch_size
    return lambda prompts, answered: rewards.score_texts(reward, layout, prompts, answered, size)


def _stages(run: Run) -> list[str]:
    """Returns the names of the stages, "all" replaced by those with a policy and a checkpoint."""
    if _STAGE.value != ["all"]:
        return list(dict.fromkeys(_STAGE.value))
    found = [name for name in folder.PAPER if name != "reward" and files.exists(run.directory(name) / "checkpoints")]
    if not found:
        raise InputError(f"--stage: expected a run with checkpoints, found none in {run.workdir}")
    return found


def _step() -> Step:
    found = _STEP.value
    if found is None or found == "best":
        return found
    if not found.isdecimal() or len(found) > 18:
        raise InputError(f'--step: expected the step of a checkpoint, or "best", found {found!r:.50}')
    return int(found)


def _check_flags() -> None:
    """Raises an error if a flag would have no effect next to another."""
    if _CHAT.value and jax.process_count() > 1:
        raise InputError(f"--chat: expected one process, found {jax.process_count()}")
    ignored = {"chat": (_PROMPT, _PROMPTS, _OUTPUT, _WHOLE), "prompts": (_PROMPT, _WHOLE)}
    for flag in (_CHAT, _PROMPTS):
        for other in ignored[flag.name]:
            if flag.value and other.value:
                raise InputError(f"--{other.name}: expected none with --{flag.name}, found {other.value}")


def _output() -> epath.Path | None:
    if _OUTPUT.value is None:
        return None
    output = files.parse(_OUTPUT.value, "--output")
    if output.suffix != ".jsonl":
        raise InputError(f"--output: expected a file that ends in .jsonl, found {output}")
    return output


def _prompts() -> list[Prompt]:
    """Reads the prompts, each with the place where it was given."""
    if _PROMPTS.value is not None:
        return records.read(files.parse(_PROMPTS.value, "--prompts"), Prompt)
    given = [("--prompt", os.fsencode(prompt)) for prompt in _PROMPT.value]
    found = []
    for where, prompt in given or _input():
        try:
            text = prompt.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected UTF-8, found {error.reason}") from None
        if text.strip():
            found.append(Prompt(prompt=text, where=where))
    return found


def _input() -> Iterator[tuple[str, bytes]]:
    """Yields the prompts on standard input without the line break at their end."""
    parts = [sys.stdin.buffer.read()] if _WHOLE.value else sys.stdin.buffer
    for number, part in enumerate(parts, start=1):
        yield f"standard input:{number}", part.removesuffix(b"\n").removesuffix(b"\r")


if __name__ == "__main__":
    command_line.read(main)
