"""Measures a policy on public tasks, as in section 4.2 and appendix D of the paper.

    python experiments/benchmark_tasks.py --data=DATA --workdir=runs/sandbox --stage=ppo_ptx \\
        --tasks=hellaswag,sst

The policy is that of any stage of a run, imported weights included (--stage=pretrain). Instead, --responses names a
folder of responses of any model. Outputs are appended to --output while the script runs, and the same command
continues. Prints a table with standard errors next to the paper's values, and writes OUTPUT/results.json. By default
OUTPUT is WORKDIR/tasks/STAGE, from which evaluate.py copies the results of all stages into the run's results.json.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence

import command_line
from absl import flags
from etils import epath

from instructjax import files
from instructjax.errors import DataError, InputError
from instructjax.evaluation import judges as judges_module
from instructjax.evaluation.tasks import results as task_results
from instructjax.evaluation.tasks.results import Result
from instructjax.evaluation.tasks.task import Judge, Output
from instructjax.runs import folder, processes
from instructjax.stages import public_tasks
from instructjax.stages.public_tasks import Case
from instructjax.stages.run import Run
from instructjax.training import parallel

PAPER = ("gpt-175b", "ppo-ptx-175b")  # columns of the table

_DATA = flags.DEFINE_string("data", None, "The folder of the tasks' files; see docs/tasks.md.", required=True)
_TASKS = flags.DEFINE_list("tasks", [], "The tasks; by default those whose file is in --data.")
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


def main(run: Run) -> None:
    """Measures the policy or the responses, prints a table and writes results.json."""
    data = files.parse(_DATA.value, "--data")
    cases = list(public_tasks.read_cases(data, _TASKS.value, shots=_SHOTS.value, limit=_LIMIT.value))
    given = dict(map(_load_judge, _JUDGE.value))
    if _RESPONSES.value and not _OUTPUT.value:
        raise InputError("--output: expected a folder for the results of --responses, found none")
    output = files.parse_workdir(_OUTPUT.value or folder.tasks_directory(run.workdir, _STAGE.value), "--output")
    judges = {
        name: given.get(name) or public_tasks.train_judge(name, data) for name in public_tasks.needed_judges(cases)
    }
    if _RESPONSES.value:
        responses = files.parse(_RESPONSES.value, "--responses")
        found = [_complete(case, case.path(responses)) for case in cases]
    else:
        with parallel.on_mesh(run.config.parallel):
            found = public_tasks.run_policy(
                run, _STAGE.value, cases, output, truncate=_TRUNCATE.value, batch_size=_BATCH_SIZE.value
            )
    processes.first(lambda: _report(cases, found, judges, output))


def _report(
    cases: Sequence[Case], found: Sequence[list[Output]], judges: Mapping[str, Judge], output: epath.Path
) -> None:
    """Computes the metrics, writes and prints them."""
    results = public_tasks.compute(cases, found, judges)
    public_tasks.write(output, results)
    print("\n".join(lines(results)))


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


def _complete(case: Case, path: epath.Path) -> list[Output]:
    """Reads a file of responses that has one for each example."""
    known = task_results.parse(task_results.read(path), path, case.examples)
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
