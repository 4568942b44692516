"""Compares rounds of comparisons with as many comparisons in one round; see docs/rounds.md.

    python experiments/benchmarks/rounds.py --workdir=runs/rounds

For each seed, experiments/rounds.py makes three rounds in WORKDIR/seedN, then one round with twice and one with three
times the comparisons, from the same GPT, SFT and initial policy. Finished rounds are not made again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from instructjax.evaluation.intervals import clustered_mean

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "rounds.py"
RECIPE, PROMPTS, ROUNDS = "configs/sandbox.py:rounds", 1_000, 3  # PROMPTS is the recipe's comparisons.prompts


def main(arguments: Sequence[str]) -> None:
    """Makes the rounds of each seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    folders = [given.workdir / f"seed{seed}" for seed in given.seeds]
    for seed, folder in zip(given.seeds, folders, strict=True):
        for flags in arms():
            command = [
                sys.executable,
                str(SCRIPT),
                f"--config={RECIPE}",
                f"--config.seed={seed}",
                f"--workdir={folder}",
            ]
            subprocess.run([*command, "--policy=ppo", *flags], check=True)
    print("\n".join(table(*zip(*map(read, folders), strict=True))))


def arms() -> list[list[str]]:
    """Returns the flags of rounds.py for several rounds, and for one round with as many comparisons as 2, 3, ..."""
    once = [f"--folder=once-{number * PROMPTS}" for number in range(2, ROUNDS + 1)]
    sizes = [f"--config.comparisons.prompts={number * PROMPTS}" for number in range(2, ROUNDS + 1)]
    return [[f"--rounds={ROUNDS}"], *(["--rounds=1", *flags] for flags in zip(once, sizes, strict=True))]


def read(folder: pathlib.Path) -> tuple[list[float], list[float]]:
    """Returns the true quality after each round, and after one round with as many comparisons."""

    def quality(name: str) -> list[float]:
        rounds = json.loads((folder / name / "rounds.json").read_text())["rounds"]
        return [one["true_quality"]["mean"] for one in rounds]

    rounds = quality("rounds")
    return rounds, rounds[:1] + [quality(f"once-{number * PROMPTS}")[0] for number in range(2, ROUNDS + 1)]


def table(rounds: Sequence[Sequence[float]], once: Sequence[Sequence[float]]) -> list[str]:
    """Returns the lines of a Markdown table: means over seeds with 95 % intervals.

    Args:
      rounds: [seeds][rounds], the true quality after each round.
      once: the same, after one round with as many comparisons.
    """
    lines = ["| prompts with comparisons | in rounds | in one round | difference |", "|---:|---:|---:|---:|"]
    for number, (several, single) in enumerate(zip(np.transpose(rounds), np.transpose(once), strict=True), start=1):
        difference = f"{_interval(several - single, sign='+')}" if number > 1 else "–"
        lines.append(f"| {number * PROMPTS} | {number}: {_interval(several)} | {_interval(single)} | {difference} |")
    return lines


def _interval(values: np.ndarray, sign: str = "") -> str:
    found = clustered_mean(values, range(len(values)))
    return f"{found.mean:{sign}.3f} ± {found.high - found.mean:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
