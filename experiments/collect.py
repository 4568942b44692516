"""Samples K answers a prompt from one or several policies of a run, as tasks for experiments/label.py.

    python experiments/collect.py --workdir=runs/sandbox --stages=sft,ppo --answers=4 --output=tasks.jsonl

A line of the output is {"prompt": ..., "responses": [K texts], "models": [K stages], ...}, with the prompt's fields.
Prompts are those of the run that PPO trains on, or those of --prompts.
"""

import json

import command_line
import jax
from absl import flags

from instructjax import files, records
from instructjax.errors import InputError
from instructjax.records import Prompt
from instructjax.stages import answers
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel

_STAGES = flags.DEFINE_string("stages", "sft", "The stages whose policies answer in turn, separated by commas.")
_ANSWERS = flags.DEFINE_integer(
    "answers", 4, "K, the number of answers to each prompt; the paper has 4 to 9.", lower_bound=1, upper_bound=9
)
_PROMPTS = flags.DEFINE_string("prompts", None, "A file of prompts, .jsonl or .jsonl.gz, instead of the run's.")
_SPLIT = flags.DEFINE_enum("split", "train", list(records.SPLITS), "The split of the run's prompts.")
_COUNT = flags.DEFINE_integer("count", 100, "The number of prompts, the first ones; 0 for all.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the samples.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "The random seed of the samples.", lower_bound=0, upper_bound=2**32 - 1)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, .jsonl.", required=True)


def main(run: Run) -> None:
    """Writes the tasks."""
    output = files.parse(_OUTPUT.value, "--output")
    if output.suffix != ".jsonl":
        raise InputError(f"--output: expected a file that ends in .jsonl, found {output}")
    stages = files.split_list(_STAGES.value)
    if not 1 <= len(stages) <= _ANSWERS.value:
        raise InputError(f"--stages: expected 1 to {_ANSWERS.value} stages (--answers), found {len(stages)}")
    sampling = Sampling(temperature=_TEMPERATURE.value, batch_size=run.config.evaluate.batch_size)
    with parallel.on_mesh(run.config.parallel):
        prompts = read_prompts(run, _PROMPTS.value, _SPLIT.value, _COUNT.value)
        tasks = answers.collect(run, stages, prompts, _ANSWERS.value, jax.random.key(_SEED.value), sampling)
    files.write_text(output, "".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks))
    print(f"{output}: {len(tasks)} prompts with {_ANSWERS.value} answers each, by {', '.join(stages)}")


def read_prompts(run: Run, path: str | None, split: str, count: int) -> list[Prompt]:
    """Returns the first prompts of a file, or of the run; all if `count` is 0."""
    found = records.read(files.parse(path, "--prompts"), Prompt) if path else run.records(Prompt, split)
    return list(found[: count or len(found)])


if __name__ == "__main__":
    command_line.read(main)
