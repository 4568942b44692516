"""Kills the smoke run repeatedly, and compares its final state, bit for bit, with that of an undisturbed run.

python tests/soak/soak.py --kills=100 --runs=5 --folder=runs/soak

The kills are SIGKILLs, spread evenly over the parts of a run: its start, the six stages and the evaluation. A kill
that is meant for a part comes at a random moment after the run has come there, within the time that an undisturbed
run spends in that part: in compilation, in training, in a save, in what lies between this stage and the next.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from instructjax.runs import checkpoint_files, metrics_file, speed  # noqa: E402
from instructjax.runs.folder import PAPER  # noqa: E402

RECIPE = "configs/sandbox.py:smoke"
CLOCKS = (*speed.MEASURED, "peak_rss_gib")
# Comparisons are collected at the end of the part "sft", the SFT checkpoint is chosen at the end of "reward".
PARTS = ("start", *PAPER, "evaluate")
GLANCE = 0.05  # seconds between looks at what a run has written


def start(workdir, folder, overrides):
    """Starts the smoke run, or the rest of it, in its own process."""
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "experiments/reproduce.py", f"--config={RECIPE}", f"--workdir={workdir}", *overrides],
            cwd=ROOT,
            # Restarts read compiled programs, so that more of the time is spent in the parts to be killed.
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
            stdout=log,
            stderr=log,
        )


def signs(workdir):
    """Returns the times of the files that show a run's progress: metrics and the ends of stages."""
    found = {}
    for path in (workdir / stage / name for stage in PAPER for name in ("metrics.jsonl", "summary.json")):
        if path.exists():
            found[str(path.relative_to(workdir))] = path.stat().st_mtime_ns
    return found


def is_there(part, found, before):
    """Returns whether a life of a run has reached a part, or an earlier life got further.

    Args:
      part: one of PARTS.
      found: the run's signs.
      before: its signs at the start of this life.
    """
    if part == "start":
        return True
    if part == "evaluate":
        return f"{PAPER[-1]}/summary.json" in found
    began = f"{part}/metrics.jsonl"
    return f"{part}/summary.json" in found or found.get(began) != before.get(began)


def unfinished(workdir):
    """Returns the first stage that a run has not finished, or else its evaluation."""
    return next((stage for stage in PAPER if not (workdir / stage / "summary.json").exists()), "evaluate")


def durations(workdir, folder, overrides):
    """Returns the seconds that an undisturbed run spends in each part."""
    began, came = time.monotonic(), {"start": 0.0}
    process = start(workdir, folder, overrides)
    while process.poll() is None:
        found = signs(workdir)
        came |= {part: time.monotonic() - began for part in PARTS if part not in came and is_there(part, found, {})}
        time.sleep(GLANCE)
    assert process.returncode == 0, f"an undisturbed run failed; see {folder}/log"
    ends = [*list(came.values())[1:], time.monotonic() - began]
    return {part: end - at for (part, at), end in zip(came.items(), ends, strict=True)}


def end_of(workdir):
    """Returns the final state of a run without times: digests of all arrays, curves, choices, results."""
    found = {}
    for stage in PAPER:
        directory = workdir / stage
        steps = checkpoint_files.saved_steps(directory / "checkpoints")
        for step in steps:
            content = json.loads((directory / "checkpoints" / str(step) / "meta" / "metadata").read_text())["content"]
            found[f"{stage} {step}"] = content["arrays"]
        found[f"{stage} curves"] = [
            {name: value for name, value in line.items() if name not in CLOCKS}
            for line in metrics_file.read(directory / "metrics.jsonl")
        ]
    found["chosen"] = json.loads((workdir / "sft" / "selected.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    found["results"] = {name: value for name, value in results.items() if name not in CLOCKS}
    found["answers"] = (workdir / "evaluate" / "answers.jsonl").read_text()
    return found


def differences(found, expected):
    """Returns the names of the differing entries."""
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


def aims(count, moments):
    """Yields the parts in which a run is killed: in order, so that it progresses, with starts anywhere in between."""
    drawn = moments.choices(PARTS, k=count)
    return sorted(drawn, key=lambda part: moments.uniform(0, len(PARTS)) if part == "start" else PARTS.index(part))


def killed(workdir, folder, overrides, part, seconds):
    """Runs one life of a run: returns whether it was killed some seconds after reaching a part, before its end."""
    before = signs(workdir)
    process = start(workdir, folder, overrides)
    while not is_there(part, signs(workdir), before) and process.poll() is None:
        time.sleep(GLANCE)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    assert code == 0, f"a run ended with {code}; see {folder}/log"
    return False


def soak(folder, kills, *, runs=1, seed=0, overrides=(), say=print):
    """Kills runs the given number of times, and lets each run finish.

    Args:
      folder: receives the runs and their log.
      kills: the number of kills.
      runs: among how many runs they are divided; more where a run ended before all of its kills.
      seed: of the parts and moments.
      overrides: flags that change the smoke recipe.
      say: is called with a line for each kill and each comparison.

    Returns:
      (kills by the stage that was not finished, runs compared); raises AssertionError where a run differs or fails.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    assert not any(folder.iterdir()), f"expected an empty folder, found files in {folder}"
    durations(folder / "undisturbed", folder, overrides)  # compiles
    expected = end_of(folder / "undisturbed")
    timed = durations(folder / "timed", folder, overrides)
    say("an undisturbed run: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in timed.items()))
    wrong = differences(end_of(folder / "timed"), expected)
    assert not wrong, f"two undisturbed runs differ in {', '.join(wrong)}"
    moments, made, compared = random.Random(seed), collections.Counter(), 0
    while (left := kills - made.total()) > 0:
        workdir = folder / f"killed_{compared}"
        for part in aims(min(left, -(-kills // runs)), moments):
            seconds = moments.uniform(0.0, timed[part])
            if not killed(workdir, folder, overrides, part, seconds):
                break
            made[stage := unfinished(workdir)] += 1
            say(f"kill {made.total()}, {seconds:.1f} s after it came to {part}: {stage} is not finished")
        else:
            assert start(workdir, folder, overrides).wait() == 0, f"a run that was killed failed; see {folder}/log"
        wrong = differences(end_of(workdir), expected)
        assert not wrong, f"{workdir} differs from the undisturbed run in {', '.join(wrong)}"
        compared += 1
        say(f"run {compared} is the undisturbed run, bit for bit, after {made.total()} kills in all")
        shutil.rmtree(workdir)
    return dict(made), compared


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/soak")
    arguments, overrides = parser.parse_known_args()
    began = time.monotonic()
    made, compared = soak(
        arguments.folder,
        arguments.kills,
        runs=arguments.runs,
        seed=arguments.seed,
        overrides=overrides,
        say=lambda line: print(line, flush=True),
    )
    by_stage = ", ".join(f"{made.get(part, 0)} in {part}" for part in PARTS if part != "start")
    print(f"{sum(made.values())} kills ({by_stage}), {compared} runs, all alike", end="; ")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
