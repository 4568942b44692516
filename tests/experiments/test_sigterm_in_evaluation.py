"""SIGTERM to one of two processes that evaluate stops both. The next evaluation ends like an undisturbed one."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from instructjax.records import SPLITS
from instructjax.stages.run import Run
from tests import cpus, recipes

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Three evaluations: an undisturbed one, one in which process 1 receives SIGTERM while it answers, and its repetition.
SCRIPT = """
import os, signal, sys, time
sys.argv[0] = "evaluate.py"
import command_line
from instructjax.runs import processes
from instructjax.runs.interruption import Interrupted
from instructjax.stages import evaluate
FILES = ("results.json", "evaluate/answers.jsonl")
sample = evaluate.sample_answers
def signalled(*given):
    evaluate.sample_answers = sample
    if "--process_id=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # the preemption service looks for signals once a second
    return sample(*given)
def move(workdir, name):
    for file in FILES:
        os.renames(workdir / file, workdir / name / file)
def main(run):
    evaluate.evaluate(run)
    processes.first(lambda: move(run.workdir, "undisturbed"))
    evaluate.sample_answers = signalled
    try:
        evaluate.evaluate(run)
    except Interrupted:
        assert not any((run.workdir / file).exists() for file in FILES)
        evaluate.evaluate(run)
        processes.first(lambda: move(run.workdir, "repeated"))
        raise
command_line.run(main)
"""


def run_both(workdir, recipe):
    """Returns the exit codes of two processes that run the script, and what they print to standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--config={recipe}", f"--workdir={workdir}", coordinator, "--process_count=2"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *flags, f"--process_id={index}"],
            cwd=ROOT,
            env=cpus.environment(1, PYTHONPATH=f"{ROOT}:{ROOT / 'experiments'}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], errors


def written(folder):
    """Returns what an evaluation has written, without times and memory."""
    results = json.loads((folder / "results.json").read_text())
    return {**results, "wall_seconds": None, "peak_rss_gib": None}, (folder / "evaluate/answers.jsonl").read_text()


@pytest.mark.slow
def test_sigterm_stops_both_processes_in_an_evaluation(tmp_path):
    small = {"batch_size": 4, "prompts": 8, "text_windows": 2, "few_shot": 0, "few_shot_candidates": 1}
    given = {f"evaluate__{key}": value for key, value in small.items()}
    # No demonstration is a single line, so GPT is not prompted, which saves a compilation.
    lines = [
        json.dumps({"prompt": line, "response": "a\nb", "split": split})
        for line, split in zip(recipes.LINES, SPLITS * 20, strict=True)
    ]
    config = recipes.changed(recipes.recipe(tmp_path, demonstrations=lines), parallel__fsdp=2, **given)
    recipe, workdir = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(
        f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    recipes.save_run(Run(config, workdir))
    shutil.rmtree(workdir / "ppo_ptx")

    codes, errors = run_both(workdir, recipe)
    line = "evaluate: stopped by SIGTERM; run the same command to resume"
    assert codes == [75, 75] and all(line in error.splitlines() for error in errors), errors
    assert written(workdir / "repeated") == written(workdir / "undisturbed")
