"""The commands and programs of docs/course.md are those of the repository."""

import json
import pathlib
import re

from instructjax.recipe import declared
from instructjax.rollout import episode
from tests.reporting import run_folders

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "course.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run_program(name, **named):
    """Runs the program that contains a text, and returns its names."""
    (program,) = (program for program in PROGRAMS if name in program)
    namespace = dict(named)
    exec(program, namespace)
    return namespace


def test_the_page_names_scripts_keys_and_pictures_that_exist():
    scripts = set(re.findall(r"python (experiments/\w+\.py)", PAGE))
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    keys = set(re.findall(r"--config\.([\w.]+)", PAGE))
    assert keys and keys <= set(dict(declared.declared_keys()))
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert len(pictures) == 3 and all((ROOT / "docs" / picture).stat().st_size < 100_000 for picture in pictures)


def test_there_are_six_steps_and_each_exercise_has_a_solution():
    steps = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[1:]
    assert len(steps) == 6
    for step in steps:
        asked = re.findall(r"\*\*Exercise (\d+)\.\*\*", step)
        solutions = step.partition('<details markdown="1">')[2].partition("</details>")[0]
        assert asked and all(f"**Solution {number}.** " in solutions for number in asked)


def test_the_programs_print_a_ranking_and_a_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/sandbox/data").mkdir(parents=True)
    (tmp_path / "runs/sandbox/reward").mkdir()
    ranking = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 2.0, 1.0]}
    (tmp_path / "runs/sandbox/data/rankings.jsonl").write_text(json.dumps(ranking) + "\n")
    lines = [{"step": 0, "validation_accuracy": 0.5, "validation_loss": 0.7}, {"step": 20, "accuracy": 0.6}]
    (tmp_path / "runs/sandbox/reward/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_program("rankings.jsonl")
    run_program("reward/metrics.jsonl")
    assert capsys.readouterr().out.splitlines() == [
        "1 rankings, 3 pairs, 33.3% ties", "p", "2.0 b", "1.0 c", "1.0 a", "0 0.500 0.700"
    ]  # fmt: skip


def test_the_program_draws_both_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"step": step, "validation_reward": 1.0, "true_quality": 0.5} for step in (0, 5)]
    for name in ("sandbox", "no-kl"):
        run_folders.write_run(tmp_path / "runs" / name, stages=("ppo",), lines=lines)
    assert len(run_program("kl.png")["panels"]) == 2
    assert (tmp_path / "kl.png").stat().st_size > 1000


def test_the_planted_bug_forgets_the_temperature(monkeypatch):
    names = ("response_log_probs", "response_log_probs_and_entropy")
    for name in names:
        monkeypatch.setattr(episode, name, lambda model, params, episodes, temperature=1.0: temperature)
    started = []
    monkeypatch.setattr("sys.argv", ["broken.py"])
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: started.append((path, run_name)))
    run_program("response_log_probs")
    assert [getattr(episode, name)(None, None, None, 0.7) for name in names] == [1.0, 1.0]
    assert started == [("experiments/ppo.py", "__main__")]
