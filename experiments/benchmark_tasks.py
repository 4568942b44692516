"""Measures a policy on public tasks, as in section 4.2 and appendix D of the paper.

    python experiments/benchmark_tasks.py --data=DATA --workdir=runs/sandbox --stage=ppo_ptx \\
        --tasks=hellaswag,sst

The policy is that of any stage of a run, imported weights included (--stage=pretrain). Instead, --responses names a
folder of responses of any model. Outputs are appended to --output while the script runs, and the same command
continues. Prints a table with standard errors next to the paper's values, and writes OUTPUT/results.json. By default
OUTPUT is WORKDIR/tasks/STAGE, from which evaluate.py copies the results of all stages into the run's results.json.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Sequence

import command_line
from absl import flags
from etils import epath

from instructjax import files
from instructjax.errors import DataError, InputError
from instructjax.evaluation import judges as judges_module
from instructjax.evaluation.tasks import outputs as task_outputs
from instructjax.evaluation.tasks import results as task_results
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.evaluation.tasks.results import Result
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task, make_prompts
from instructjax.runs import checkpoint, folder, progress
from instructjax.stages import trained
from instructjax.stages.run import Run
from instructjax.training import parallel

PAPER = ("gpt-175b", "ppo-ptx-175b")  # columns of the table

_DATA = flags.DEFINE_string("data", None, "The folder of the tasks' files; see docs/tasks.md.", required=True)
_TASKS = flags.DEFINE_list("tasks", None, "The tasks; by default those whose file is in --data.")
_STAGE = flags.DEFINE_string("stage", "ppo_ptx", "The stage whose policy is measured.")
_SHOTS = flags.DEFINE_integer(
    "shots", 0, "Solved examples in a prompt; -1 takes the paper's number. 0 for tasks without them.", lower_bound=-1
)
_LIMIT = flags.DEFINE_integer("limit", None, "Evaluate only the first examples of each task.", lower_bound=2)
_TRUNCATE = flags.DEFINE_boolean("truncate", False, "Drop the beginning of prompts that do not fit the model.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Rows per forward pass, or prompts sampled at a time.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder for outputs and results.json; WORKDIR/tasks/STAGE.")
_JUDGE = flags.DEFINE_multi_string(
    "judge", [], "NAME=MODULE:FUNCTION, a judge of true, info or toxicity; others are trained on files of --data."
)
_RESPONSES = flags.DEFINE_string("responses", None, "A folder of files TASK.PROMPT.jsonl, instead of a policy.")


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with one type of prompt.

    Attributes:
      task: the task.
      prompt_type: a key of its instructions.
      shots: the number of solved examples.
      prompts: one per example.
      examples: those that are evaluated.
    """

    task: Task
    prompt_type: str
    shots: int
    prompts: Sequence[str]
    examples: Sequence[Example]

    def path(self, directory: epath.Path) -> epath.Path:
        """Returns the file of its outputs in a folder."""
        return task_results.path_of(directory, self.task, self.prompt_type, self.shots)


def main(run: Run) -> None:
    """Measures the policy or the responses, prints a table and writes results.json."""
    cases = list(read_cases())
    given = dict(map(_load_judge, _JUDGE.value))
    if _RESPONSES.value and not _OUTPUT.value:
        raise InputError("--output: expected a folder for the results of --responses, found none")
    directory = _OUTPUT.value or folder.tasks_directory(run.workdir, _STAGE.value)
    output = files.parse(directory, "--output", schemes=())
    needed = {name: None for case in cases for name in case.task.judges}
    judges = {name: given.get(name) or _train_judge(name) for name in needed}
    if _RESPONSES.value:
        responses = files.parse(_RESPONSES.value, "--responses")
        found = [
            _complete(case, task_results.path_of(responses, case.task, case.prompt_type, case.shots)) for case in cases
        ]
    else:
        with parallel.on_mesh(run.config.parallel):
            found = _run_policy(run, cases, output)
    results = [
        result
        for case, outputs in zip(cases, found, strict=True)
        for result in task_results.compute(case.task, case.prompt_type, case.shots, case.examples, outputs, judges)
    ]
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "results.json", [dataclasses.asdict(result) for result in results])
    print("\n".join(lines(results)))


def read_cases() -> Iterable[Case]:
    """Reads the examples of each task and writes their prompts.

    Raises:
      InputError: a task is unknown, its file is wrong, or it has too few examples.
    """
    data = files.parse(_DATA.value, "--data")
    names = _TASKS.value or [name for name, task in TASKS.items() if (data / task.file).exists()]
    if not names:
        raise InputError(f"--data: expected the file of a task; see docs/tasks.md, found none in {data}")
    for name in names:
        if name not in TASKS:
            raise InputError(f"--tasks: expected some of {', '.join(TASKS)}, found {name!r:.40}")
    for name in names:
        task = TASKS[name]
        examples = task.read(data / task.file)
        shots = task.shots if _SHOTS.value < 0 else _SHOTS.value
        for prompt_type in task.instructions:
            prompts, asked = make_prompts(task, examples, prompt_type, shots)
            prompts, asked = prompts[: _LIMIT.value], asked[: _LIMIT.value]
            if (count := len(set(task_results.groups(asked)))) < 2:
                raise DataError(
                    f"{data / task.file}: expected at least 2 examples that share no text, for a standard error, "
                    f"found {count}; raise --limit, or lower --shots"
                )
            yield Case(task, prompt_type, shots, prompts, asked)


def _run_policy(run: Run, cases: Sequence[Case], output: epath.Path) -> list[list[Output]]:
    """Returns the policy's outputs on each case, some of which may be in files from before."""
    directory, step = run.checkpoints(_STAGE.value), folder.selected_step(run.workdir, _STAGE.value)
    config, layout = trained.describe(directory, step)
    tokenizer = layout.tokenizer
    fit = {"max_length": config.max_length, "truncate": _TRUNCATE.value}
    prepared = [  # before the weights are loaded
        task_outputs.tokenize_choices(tokenizer, case.prompts, case.examples, **fit)
        if case.examples[0].choices
        else task_outputs.fit_prompts(tokenizer, case.task, case.prompts, case.examples, **fit)
        for case in cases
    ]
    model_name = f"{_STAGE.value} {step or ''} {checkpoint.fingerprint(directory)}"
    policy, _ = run.open_policy(_STAGE.value)
    found = []
    output.mkdir(parents=True, exist_ok=True)
    for case, prompts in zip(cases, prepared, strict=True):
        path = case.path(output)
        head = task_results.header(case.task, model_name, [*case.prompts, str(_TRUNCATE.value)])
        known = task_results.read(path, case.examples, head)
        if case.examples[0].choices:
            batches = task_outputs.score_choices(
                policy.model, policy.params, prompts, pad_id=tokenizer.pad_id, batch_size=_BATCH_SIZE.value, done=known
            )
        else:
            batches = task_outputs.sample_answers(
                policy.model, policy.params, tokenizer, case.task, prompts, batch_size=_BATCH_SIZE.value, done=known
            )
        label = f"{case.task.name}, {task_results.prompt_name(case.prompt_type, case.shots)}"
        with (
            progress.Bar(label, len(case.examples), "example", done=len(known)) as bar,
            task_results.continued(path, head, known) as write,
        ):
            for batch in bar.over(batches):
                write(batch)
                known.update(batch)
        found.append([known[i] for i in range(len(case.examples))])
    return found


def _load_judge(named: str) -> tuple[str, Judge]:
    """Imports a judge, NAME=MODULE:FUNCTION. Modules in the current folder are found, too."""
    name, _, place = named.partition("=")
    module, colon, function = place.partition(":")
    if name not in judges_module.FILES or not colon:
        expected = "|".join(judges_module.FILES)
        raise InputError(f"--judge: expected {expected}=MODULE:FUNCTION, found {named!r:.80}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return name, getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--judge: expected {place} to be found, found: {error}") from None


def _train_judge(name: str) -> Judge:
    data = files.parse(_DATA.value, "--data")
    judge, held_out = judges_module.train(judges_module.read(name, data / judges_module.FILES[name]))
    print(
        f"judge of {name}, trained here: on {held_out['n']} held-out answers, accuracy {held_out['accuracy']:.3f} "
        f"(majority {held_out['majority']:.3f}), correlation {held_out['correlation']:.3f}"
    )
    return judge


def _complete(case: Case, path: epath.Path) -> list[Output]:
    """Reads a file of responses that has one for each example."""
    known = task_results.read(path, case.examples)
    if missing := [i for i in range(len(case.examples)) if i not in known]:
        raise DataError(
            f"{path}: expected an output for each of {len(case.examples)} examples, found {len(known)}; "
            f"the first that is missing has index {missing[0]}"
        )
    return [known[i] for i in range(len(case.examples))]


def lines(results: Sequence[Result]) -> list[str]:
    """Returns the lines of the table."""
    header = f"{'task':15}{'prompt':15}{'shots':>5}  {'metric':12}{'ours':>8} {'stderr':>7} {'n':>6}"
    rows = [f"{header} {' '.join(f'{model:>13}' for model in PAPER)}"]
    for result in results:
        digits = ".2f" if result.metric in task_results.IN_POINTS else ".3f"
        paper = " ".join(f"{format(result.paper[m], digits) if result.paper else '–':>13}" for m in PAPER)
        rows.append(
            f"{result.task:15}{result.prompt_type:15}{result.shots:5}  {result.metric:12}{result.value:8{digits}} "
            f"{result.stderr:7{digits}} {result.n:6} {paper}"
        )
    return rows


if __name__ == "__main__":
    command_line.read(main)
