"""Sections of report.md on people's rankings and on public tasks."""

import json

import numpy as np

from instructjax.evaluation.ranking_report import evaluate_rankings
from instructjax.records import Ranking
from instructjax.reporting import rankings_section, report, tables
from instructjax.runs import folder
from tests.reporting.run_folders import results

RANKINGS = [Ranking(prompt=f"p{i}", responses=("a fox", "owl"), scores=(i % 2, (i + 1) % 2)) for i in range(6)]
REWARDS = [np.array([1.0, 0.0])] * 6
REPORT = evaluate_rankings(
    dict.fromkeys(("train", "validation", "test"), RANKINGS), dict.fromkeys(("train", "validation", "test"), REWARDS)
)


def test_the_report_has_the_rankings(tmp_path):
    text = report.write_report(tmp_path, {**results(), "rankings": REPORT}, {}).read_text()
    _, section = text.split("## Rankings")
    assert "| reward model | 0.500 ± " in section and "| test | 6 | 6 | 0.813 | 0.500 ± " in section
    assert "raters with each other" not in section and "None" not in section
    assert "## Rankings" not in report.write_report(tmp_path, results(), {}).read_text()


def test_test_rankings_of_one_prompt_have_no_accuracy():
    few = evaluate_rankings(
        {"train": RANKINGS, "validation": RANKINGS, "test": RANKINGS[:1] * 3},
        {"train": REWARDS, "validation": REWARDS, "test": REWARDS[:3]},
    )
    line = rankings_section.format_line(few)
    assert line == "test rankings: no accuracy; expected rankings of at least 2 prompts, found 1"
    text = rankings_section.format_report(few)
    assert "| test | 3 | 3 | 1.313 | – |" in text and "| train | 6 | 6 | 0.813 | 0.500 ± " in text


def test_the_kept_checkpoint_is_named():
    text = rankings_section.format_report({**REPORT, "step": 2, "candidates": {"2": 0.25, "5": 0.5}})
    assert "the one of step 2 was kept" in text and "| 5 | 0.5000 |" in text


def test_tasks_of_several_stages_stand_side_by_side(tmp_path):
    def measured(value, prompt="zero-shot"):
        return {"task": "sst", "prompt_type": prompt, "shots": 0, "metric": "accuracy", "value": value, "stderr": 0.01}

    for stage, found in {"sft": [measured(0.7)], "ppo_ptx": [measured(0.6), measured(0.5, "few-shot")]}.items():
        directory = folder.tasks_directory(tmp_path, stage)
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps(found))
    tasks = folder.read_tasks(tmp_path, ["pretrain", "sft", "ppo_ptx"])
    assert tables.task_rows({"tasks": tasks}) == [
        ["task", "prompt", "shots", "sft", "ppo_ptx"],
        ["sst, accuracy", "zero-shot", "0", "0.700 ± 0.010", "0.600 ± 0.010"],
        ["sst, accuracy", "few-shot", "0", "–", "0.500 ± 0.010"],
    ]
    assert "## Public tasks" in report.write_report(tmp_path, {**results(), "tasks": tasks}, {}).read_text()
    assert tables.task_rows(results()) == []
