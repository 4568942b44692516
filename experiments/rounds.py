"""Repeats steps 2 and 3 of the paper: comparisons of answers of the newest policy, a reward model, a new policy.

    python experiments/rounds.py --config=configs/sandbox.py:rounds --workdir=runs/sandbox-rounds --rounds=3

Round N is an ordinary run in WORKDIR/rounds/N. It starts from GPT, SFT and PPO's initial policy of WORKDIR, which are
trained first if they are missing. Run it again with the same flags to resume. With --desk, people label; see
docs/rounds.md.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import command_line
import jax
from absl import flags
from etils import epath

from instructjax import files, records
from instructjax.errors import ConfigError, DataError, InputError
from instructjax.recipe import check
from instructjax.records import Prompt, Ranking
from instructjax.runs import processes
from instructjax.stages import (
    answers,
    comparisons,
    copying,
    evaluate,
    ppo,
    ppo_init,
    pretrain,
    reward,
    selection,
    sft,
)
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from instructjax.training import parallel

BASE = (pretrain.run, sft.run, ppo_init.run)
POLICIES = {stage.declaration.name: stage for stage in (ppo.run, ppo.run_with_text)}

_ROUNDS = flags.DEFINE_integer("rounds", 3, "The number of rounds.", lower_bound=1)
_POLICY = flags.DEFINE_enum("policy", "ppo_ptx", list(POLICIES), "The stage that trains each round's policy.")
_FOLDER = flags.DEFINE_string("folder", "rounds", "The folder of the rounds in WORKDIR.")
_DESK = flags.DEFINE_boolean("desk", False, "Let people label: write tasks, and read the labels that label.py exports.")


def main(run: Run) -> None:
    """Trains what the rounds share, then one round after the other, as far as there are labels."""
    if files.is_bucket(run.workdir):
        raise InputError(f"--workdir: expected a local folder for rounds, found {run.workdir}")
    rounds = [make_round(run, number) for number in range(1, _ROUNDS.value + 1)]
    check_rounds(run, rounds)
    for stage in BASE:
        if not run.is_finished(stage.declaration.name):
            stage(run)
    finished: list[dict[str, Any]] = []
    for number, one in enumerate(rounds, start=1):
        for stage in BASE:
            copying.copy_stage(run, one, stage)
        if not (collect_labels(one) if _DESK.value else collect(one)):
            return
        reward.run(one)
        selection.select(one)
        POLICIES[_POLICY.value](one)
        if not files.exists(one.workdir / "results.json"):
            evaluate.evaluate(one)
        finished.append(summarize(one, number))
        processes.first(lambda: files.write_json(run.workdir / _FOLDER.value / "rounds.json", {"rounds": finished}))
    print("\n".join(lines(finished)))


def make_round(run: Run, number: int) -> Run:
    """Returns the run of a round: its policies are those of all rounds before it, the newest first, and SFT."""
    config = run.config.copy_and_resolve_references().unlock()
    earlier = [f"../{before}/{_POLICY.value}" for before in range(number - 1, 0, -1)]
    config.comparisons.stages = (*earlier, "sft")
    config.comparisons.skip = run.config.comparisons.skip + (number - 1) * run.config.comparisons.prompts
    if number > 1:
        config.comparisons.earlier = f"../{number - 1}"
    return Run(config.lock(), run.workdir / _FOLDER.value / str(number), run.recipe)


def check_rounds(run: Run, rounds: Sequence[Run]) -> None:
    """Checks all rounds before anything is trained.

    Raises:
      ConfigError: no one ranks, a round has too many policies, or the sandbox too few prompts for all rounds.
      DataError: the source has rankings, which would be those of every round, or too few prompts for people.
    """
    for one in rounds:
        check.recipe(one.config)
    if run.has(Ranking) and not files.exists(run.data_folder / "comparisons.json"):  # of the source, not collected
        raise DataError("rankings: expected none among the records, because each round collects its own, found some")
    if _DESK.value:
        prompts_to_label(run, rounds[-1])
    elif "sandbox" not in run.config:
        raise ConfigError("--desk: expected with a recipe that has no simulated labelers, found none")


def collect(one: Run) -> bool:
    """Has the source's labelers rank answers."""
    comparisons.collect(one)
    return True


def collect_labels(one: Run) -> bool:
    """Writes tasks for the labeling desk, or reads the labels that it exported.

    Returns:
      Whether the round has labels.
    """
    if one.has(Ranking):
        return True
    tasks, labels = one.workdir / "tasks.jsonl", one.workdir / "labels"
    if not files.exists(tasks):
        write_tasks(one, tasks)
    if not files.exists(labels / "rankings.jsonl"):
        print(
            f"{tasks}: to label; then run rounds.py again\n"
            f"  python experiments/label.py --workdir={one.workdir} --tasks={tasks} --labelers=NAMES\n"
            f"  python experiments/label.py --workdir={one.workdir} --export={labels}"
        )
        return False
    heldout = labels / "heldout_rankings.jsonl"
    comparisons.add(
        one,
        records.read(labels / "rankings.jsonl", Ranking),
        records.read(heldout, Ranking) if files.exists(heldout) else [],
    )
    return True


def write_tasks(one: Run, output: epath.Path) -> None:
    """Writes answers to the round's prompts; see `prompts_to_label`."""
    section = one.config.comparisons
    sampling = Sampling(temperature=section.temperature, batch_size=one.config.evaluate.batch_size)
    prompts = prompts_to_label(one, one)
    key = jax.random.fold_in(jax.random.key(one.config.seed), section.skip)
    with parallel.on_mesh(one.config.parallel):
        tasks = answers.collect(one, section.stages, prompts, section.min_answers, key, sampling)
    lines = "".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks)
    processes.first(lambda: files.write_text(output, lines))


def prompts_to_label(run: Run, one: Run) -> list[Prompt]:
    """Returns a round's prompts: `comparisons.prompts` of the split train, and a tenth as many of validation.

    Args:
      run: has the records.
      one: the round.

    Raises:
      DataError: fewer prompts are left after those of earlier rounds.
    """
    section, prompts = one.config.comparisons, []
    validation = max(1, section.prompts // 10)
    asked = {
        "train": (section.skip, section.prompts),
        "validation": (section.skip // section.prompts * validation, validation),
    }
    for split, (first, count) in asked.items():
        found = run.records(Prompt, split)[first : first + count]
        if len(found) < count:
            raise DataError(
                f"prompts: expected {count} of the split {split} after the first {first}, found {len(found)}; "
                "lower comparisons.prompts"
            )
        prompts += found
    return prompts


def summarize(one: Run, number: int) -> dict[str, Any]:
    """Returns what a round's results say of its comparisons, its reward model and its policy."""
    results = files.read_json(one.workdir / "results.json")
    policy = results["models"][_POLICY.value]
    return {
        "round": number,
        "rankings": len(one.records(Ranking, "train")),
        "reward_accuracy": ((results["reward_model"] or {}).get("accuracy") or {}).get("heldout_labelers"),
        **{name: policy[name] for name in ("true_quality", "win_rate_vs_sft", "reward", "kl_to_init")},
    }


def lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines to print: a row per round."""
    rows = [("round", "rankings", "RM accuracy", "true quality", "vs SFT, held-out", "KL")]
    for one in rounds:
        numbers = (one["reward_accuracy"], one["kl_to_init"])
        accuracy, kl = ("–" if number is None else f"{number:.3f}" for number in numbers)
        estimates = (one["true_quality"], (one["win_rate_vs_sft"] or {}).get("heldout"))
        rows.append((str(one["round"]), str(one["rankings"]), accuracy, *map(_interval, estimates), kl))
    return [" ".join(f"{cell:>16}" for cell in row) for row in rows]


def _interval(estimate: Mapping[str, float] | None) -> str:
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}" if estimate else "–"


if __name__ == "__main__":
    command_line.run(main)
