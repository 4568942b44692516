"""Public tasks (section 4.2) on the policies of a run, in WORKDIR/tasks/STAGE."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from instructjax import files
from instructjax.data import tfds_sets
from instructjax.errors import DataError, InputError
from instructjax.evaluation import judges as judges_module
from instructjax.evaluation.tasks import outputs as task_outputs
from instructjax.evaluation.tasks import results as task_results
from instructjax.evaluation.tasks.registry import TASKS
from instructjax.evaluation.tasks.results import Result
from instructjax.evaluation.tasks.task import Example, Judge, Output, Task, make_prompts
from instructjax.evaluation.text_metrics import require
from instructjax.runs import checkpoint, cost, folder, interruption, processes, progress
from instructjax.runs.best import best_step
from instructjax.stages import trained
from instructjax.stages.run import Run
from instructjax.text.tokenizer import Tokenizer
from instructjax.training import parallel

PPO = ("ppo", "ppo_ptx")
POLICIES = ("pretrain", "sft", *PPO)  # before and after PPO
_BATCH_SIZE = 16


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


def read_cases(
    data: epath.Path,
    names: Sequence[str],
    *,
    shots: int = 0,
    limit: int | None = None,
    keys: tuple[str, str, str] = ("--data", "--tasks", "raise --limit, or lower --shots"),
) -> Iterator[Case]:
    """Reads the examples of each task and writes their prompts.

    Args:
      data: the folder of the tasks' files.
      names: the tasks; () for those whose file is in the folder.
      shots: solved examples in a prompt; -1 for the paper's number.
      limit: only the first examples of each task.
      keys: for errors, the flags or keys of the first two, and what helps against too few examples.

    Raises:
      InputError: a task is unknown, its file is wrong, or it has too few examples.
    """
    folder_key, names_key, advice = keys
    for name in names:
        if name not in TASKS:
            raise InputError(f"{names_key}: expected some of {', '.join(TASKS)}, found {name!r:.40}")
    places = {name: _place(data, task) for name, task in TASKS.items()}
    chosen = names or [name for name, place in places.items() if files.exists(place)]
    if not chosen:
        raise InputError(f"{folder_key}: expected the file of a task; see docs/tasks.md, found none in {data}")
    for name in chosen:
        task = TASKS[name]
        examples = task.read(places[name])
        shown = task.shots if shots < 0 else shots
        for prompt_type in task.instructions:
            prompts, asked = make_prompts(task, examples, prompt_type, shown)
            prompts, asked = prompts[:limit], asked[:limit]
            if (count := len(set(task_results.groups(asked)))) < 2:
                raise DataError(
                    f"{places[name]}: expected at least 2 examples that share no text, for a standard error, "
                    f"found {count}; {advice}"
                )
            yield Case(task, prompt_type, shown, prompts, asked)


def _place(data: epath.Path, task: Task) -> epath.Path:
    """Returns a task's file or, if only tfds has it, the folder of the prepared set."""
    prepared = tfds_sets.find(data, task.tfds.name) if task.tfds else None
    return prepared if prepared and not files.exists(data / task.file) else data / task.file


def prepare_prompts(cases: Iterable[Case], tokenizer: Tokenizer, *, max_length: int, truncate: bool) -> list[Any]:
    """Returns what a model reads of each case: tokens of choices, or prompts with room for an answer.

    Raises:
      DataError: a prompt does not fit; see `outputs.tokenize_choices` and `outputs.fit_prompts`.
    """
    fit: dict[str, Any] = {"max_length": max_length, "truncate": truncate}
    return [
        task_outputs.tokenize_choices(tokenizer, case.prompts, case.examples, **fit)
        if case.examples[0].choices
        else task_outputs.fit_prompts(tokenizer, case.task, case.prompts, case.examples, **fit)
        for case in cases
    ]


def run_policy(
    run: Run,
    stage: str,
    cases: Sequence[Case],
    output: epath.Path,
    *,
    truncate: bool,
    batch_size: int,
    step: int | None = None,
) -> list[list[Output]]:
    """Returns a policy's outputs on each case, and appends them to files, which may have some from before.

    Args:
      run: has the stage.
      stage: whose policy it is.
      cases: what is asked.
      output: the folder of the files.
      truncate: drops the beginning of prompts that do not fit, which are an error otherwise.
      batch_size: rows per forward pass, or prompts that are sampled at a time.
      step: of the checkpoint; None for the one that `Run.load_policy` loads.
    """
    directory = run.checkpoints(stage)
    step = folder.selected_step(run.workdir, stage) if step is None else step
    config, layout = trained.describe(directory, step)
    tokenizer = layout.tokenizer
    prepared = prepare_prompts(cases, tokenizer, max_length=config.max_length, truncate=truncate)
    model_name = f"{stage} {step or ''} {checkpoint.fingerprint(directory)}"
    policy, _ = run.open_policy(stage, step)
    found = []
    processes.first(lambda: output.mkdir(parents=True, exist_ok=True))
    for case, prompts in zip(cases, prepared, strict=True):
        path = case.path(output)
        head = task_results.header(case.task, model_name, [*case.prompts, str(truncate)])
        processes.check_equal({str(path): head})
        known = task_results.parse(_begun(path), path, case.examples, head)
        if case.examples[0].choices:
            batches = task_outputs.score_choices(
                policy.model, policy.params, prompts, pad_id=tokenizer.pad_id, batch_size=batch_size, done=known
            )
        else:
            batches = task_outputs.sample_answers(
                policy.model, policy.params, tokenizer, case.task, prompts, batch_size=batch_size, done=known
            )
        label = f"{stage}: {case.task.name}, {task_results.prompt_name(case.prompt_type, case.shots)}"
        with (
            progress.Bar(label, len(case.examples), "example", done=len(known)) as bar,
            _appended(path, head, known) as write,
        ):
            for batch in bar.over(interruption.stoppable(batches, "tasks")):
                write(batch)
                known.update(batch)
        found.append([known[i] for i in range(len(case.examples))])
    return found


def _begun(path: epath.Path) -> str:
    """Returns what a file of outputs has from before; "" if there is none. All processes must see the same."""
    return processes.from_first(lambda: task_results.read(path) if files.exists(path) else "")


def _appended(
    path: epath.Path, head: Mapping[str, str], known: Mapping[int, Output]
) -> contextlib.AbstractContextManager[task_results.Append]:
    """Opens a file of outputs in the first process. The others compute the same outputs and write nothing."""
    if processes.is_first():
        return task_results.continued(path, head, known)
    return contextlib.nullcontext(lambda _: None)


def compute(cases: Sequence[Case], outputs: Sequence[list[Output]], judges: Mapping[str, Judge]) -> list[Result]:
    """Computes the metrics of all cases."""
    return [
        result
        for case, found in zip(cases, outputs, strict=True)
        for result in task_results.compute(case.task, case.prompt_type, case.shots, case.examples, found, judges)
    ]


def write(output: epath.Path, results: Sequence[Result]) -> None:
    """Writes OUTPUT/results.json."""
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "results.json", [dataclasses.asdict(result) for result in results])


def needed_judges(cases: Iterable[Case]) -> list[str]:
    """Returns the names of the judges that the tasks of some cases use."""
    return list(dict.fromkeys(name for case in cases for name in case.task.judges))


def train_judge(name: str, data: epath.Path) -> Judge:
    """Trains a judge on a file of the tasks' folder, and prints how good it is."""
    judge, held_out = judges_module.train(judges_module.read(name, data / judges_module.FILES[name]))
    print(
        f"judge of {name}, trained here: on {held_out['n']} held-out answers, accuracy {held_out['accuracy']:.3f} "
        f"(majority {held_out['majority']:.3f}), correlation {held_out['correlation']:.3f}"
    )
    return judge


def check(run: Run) -> None:
    """Checks the tasks that a recipe names, with their files, before its first stage.

    Raises:
      InputError: see `read_cases` and `prepare_prompts`; or a package is missing.
    """
    for module in ("sacrebleu", "rouge_score", "sklearn"):
        require(module)
    data, cases = _cases(run)
    for name in needed_judges(cases):
        judges_module.read(name, data / judges_module.FILES[name])
    prepare_prompts(cases, run.layout.tokenizer, max_length=run.policy_config.max_length, truncate=True)


def measure(run: Run) -> None:
    """Runs the tasks in `evaluate.tasks` on each of `POLICIES` and on guests, if they are finished.

    Writes WORKDIR/tasks/STAGE, which `evaluate.evaluate` copies into results.json and report.md. All processes run the
    policies on the same prompts, and the first one calls the judges and writes.
    """
    with cost.timed(run.workdir, "tasks"), parallel.on_mesh(run.config.parallel):
        data, cases = _cases(run)
        judges = {name: train_judge(name, data) for name in needed_judges(cases)}

        def write_metrics(output: epath.Path, found: Sequence[list[Output]]) -> None:
            write(output, compute(cases, found, judges))

        for stage in filter(run.is_finished, (*POLICIES, *run.config.evaluate.guests)):
            output = folder.tasks_directory(run.workdir, stage)
            best = stage in PPO and run.config.evaluate.ppo_checkpoint == "best"
            step = best_step(run.directory(stage)) if best else None
            found = run_policy(run, stage, cases, output, truncate=True, batch_size=_BATCH_SIZE, step=step)
            processes.first(functools.partial(write_metrics, output, found))


def _cases(run: Run) -> tuple[epath.Path, list[Case]]:
    section = run.config.evaluate
    data = files.parse(section.tasks, "evaluate.tasks")
    keys = ("evaluate.tasks", "evaluate.task_names", "raise evaluate.task_examples")
    limit = section.task_examples or None
    return data, list(read_cases(data, files.split_list(section.task_names), limit=limit, keys=keys))
