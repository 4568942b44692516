"""The smoke recipe, whole and in parts: its results, and what happens when it is started again."""

import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs import sandbox
from instructjax.records import Demonstration, Prompt
from instructjax.runs import cost, metrics_file, speed
from instructjax.stages import rewards, trained
from instructjax.stages.run import Run, policy_config
from tests import scripts

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = "configs/sandbox.py:smoke"
STAGES = ("pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx")
MODELS = ("gpt", "gpt_prompted", "sft", "ppo", "ppo_ptx")


def script(name, workdir, *flags, stdin=""):
    finished = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / name), f"--config={RECIPE}", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns (workdir, the printed output)."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    return workdir, script("reproduce.py", workdir)


@pytest.fixture(scope="module")
def results(run):
    return json.loads((run[0] / "results.json").read_text())


def curve(workdir, stage):
    """Returns the stage's metrics, without times."""
    lines = metrics_file.read(workdir / stage / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in speed.MEASURED} for line in lines]


def assert_number(value, low=-math.inf, high=math.inf):
    assert isinstance(value, int | float) and not isinstance(value, bool)
    assert low <= value <= high


def assert_estimate(estimate, low=-math.inf, high=math.inf):
    assert set(estimate) == {"mean", "low", "high", "n"}
    assert_number(estimate["mean"], low, high)
    assert estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert isinstance(estimate["n"], int) and estimate["n"] > 0


class TestResults:
    def test_the_results_record_the_run_and_its_cost(self, results):
        assert results["seed"] == 0
        assert results["config"] == RECIPE
        seconds = results["wall_seconds"]
        assert {*STAGES, "evaluate", "total"} <= set(seconds)
        assert all(value > 0 for value in seconds.values())
        parts = sum(value for name, value in seconds.items() if name != "total")
        assert abs(seconds["total"] - parts) < 1
        assert 0 < results["peak_rss_gib"] < 2

    @pytest.mark.parametrize("model", MODELS)
    def test_each_model(self, results, model):
        assert set(results["models"]) == set(MODELS)
        found = results["models"][model]
        assert isinstance(found["params"], int) and found["params"] > 0
        assert_estimate(found["true_quality"], 0, 1)
        assert set(found["win_rate_vs_sft"]) == {"training", "heldout"}
        for estimate in found["win_rate_vs_sft"].values():
            assert_estimate(estimate, 0, 1)
        assert_number(found["likert"], 1, 7)
        assert len(found["metadata"]) == 11  # Table 3, whose twelfth field is the Likert score
        for rate in found["metadata"].values():
            assert_number(rate, 0, 1)
        assert_number(found["pretrain_loss"], 0, 10)
        if model == "gpt_prompted":
            assert found["kl_to_init"] is None
        else:
            assert_number(found["kl_to_init"])
        assert_number(found["response_tokens"], 1, 32)

    def test_the_reward_model(self, results):
        found = results["reward_model"]
        for rate in (*found["accuracy"].values(), *found["labeler_agreement"].values()):
            assert_number(rate, 0, 1)
        assert set(found["accuracy"]) == {"training_labelers", "heldout_labelers"}
        assert set(found["labeler_agreement"]) == {"training", "heldout"}
        assert isinstance(found["pairs"], int) and found["pairs"] > 0

    def test_the_policies_learned_something(self, run, results):
        workdir, _ = run
        pretraining = [line["text_loss"] for line in curve(workdir, "pretrain") if "text_loss" in line]
        assert pretraining[-1] < 0.7 * pretraining[0]
        assert results["models"]["ppo_ptx"]["pretrain_loss"] < results["models"]["ppo"]["pretrain_loss"]

    @pytest.mark.parametrize("stage", ["ppo", "ppo_ptx"])
    def test_ppo_starts_at_ratio_one_and_without_kl(self, run, stage):
        before, first, *later = curve(run[0], stage)
        assert before["step"] == 0 and abs(before["validation_kl"]) < 1e-5
        assert first["step"] == 1
        assert abs(first["kl"]) < 1e-5 and first["max_abs_kl"] < 1e-5
        assert all(line["first_ratio_deviation"] < 1e-5 for line in (first, *later))
        assert later[-1]["max_abs_kl"] > 1e-3
        assert ("ptx_loss" in first) == (stage == "ppo_ptx")

    def test_demonstrations_score_zero_on_average(self, run):
        workdir, config = run[0], sandbox.get_config("smoke")
        run = Run(config, workdir)
        shape = policy_config(config, run.layout.tokenizer.vocab_size)
        model = trained.load_reward_model(workdir / "reward" / "checkpoints", shape, run.layout.tokenizer)
        records = run.records(Demonstration, "train")
        prompts = [Prompt(prompt=record.prompt) for record in records]
        scores = rewards.of_model(run, model).of_texts(prompts, [[record.response] for record in records])
        assert abs(scores.mean()) < 1e-4 < scores.std()


class TestReport:
    def test_the_report_has_a_table_and_figures(self, run):
        workdir, printed = run
        report = (workdir / "report.md").read_text()
        assert str(workdir / "report.md") in printed
        for model in ("GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx"):
            assert model in report and model in printed
        figures = [line.partition("(")[2].rstrip(")") for line in report.splitlines() if line.startswith("![")]
        assert len(figures) == 5  # win rates, PPO, text loss, and two of the reward model
        for figure in figures:
            assert (workdir / figure).read_bytes().startswith(b"\x89PNG")

    def test_each_stage_leaves_its_curve_and_its_config(self, run):
        for stage in STAGES:
            folder = run[0] / stage
            assert curve(run[0], stage)
            assert json.loads((folder / "config.json").read_text())["seed"] == 0
            assert list((folder / "tensorboard").iterdir())
            assert json.loads((folder / "summary.json").read_text())["steps"] == curve(run[0], stage)[-1]["step"]

    def test_compiled_programs_are_kept_and_the_time_to_the_first_step_is_reported(self, run):
        kept = [path.name for path in (run[0] / "compiled").iterdir()]
        assert any("step" in name for name in kept) and ".in_use" not in kept
        for stage in STAGES:
            summary = json.loads((run[0] / stage / "summary.json").read_text())
            assert 0 < summary["first_step_seconds"] < sum(cost.total(run[0])[0].values())

    def test_every_prompt_has_an_answer_of_every_model(self, run, results):
        rows = [json.loads(line) for line in (run[0] / "evaluate" / "answers.jsonl").read_text().splitlines()]
        assert len(rows) == results["models"]["sft"]["true_quality"]["n"]
        assert all(set(row) == {"prompt", *MODELS} for row in rows)


def content(folder):
    """Returns a digest of each file that a stage wrote during training."""
    names = ("checkpoints", "metrics.jsonl", "summary.json", "selected.json")
    files = [path for name in names for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def again(run, results, tmp_path_factory):
    """Copies the run with ppo_ptx interrupted after its first checkpoint, and starts it again."""
    workdir = tmp_path_factory.mktemp("again") / "run"
    shutil.copytree(run[0], workdir)
    (workdir / "ppo_ptx" / "summary.json").unlink()
    shutil.rmtree(workdir / "ppo_ptx" / "checkpoints" / "6")
    (workdir / "results.json").unlink()
    before = {stage: content(workdir / stage) for stage in STAGES}
    script("reproduce.py", workdir)
    return workdir, before


@pytest.mark.slow
class TestAgain:
    @pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo_init", "ppo"])
    def test_a_finished_stage_is_left_alone(self, again, stage):
        workdir, before = again
        assert len(before[stage]) > 5
        assert content(workdir / stage) == before[stage]

    def test_an_interrupted_stage_ends_like_an_uninterrupted_one(self, run, again):
        # Both optimizers, both streams, the average and the randomness are restored, so all numbers are equal.
        assert curve(again[0], "ppo_ptx") == curve(run[0], "ppo_ptx")
        assert (again[0] / "ppo_ptx" / "summary.json").exists()

    def test_the_results_are_the_same(self, again, results):
        found = json.loads((again[0] / "results.json").read_text())
        assert found.keys() == results.keys()
        for key in found.keys() - {"wall_seconds", "peak_rss_gib"}:
            assert found[key] == results[key]


def test_a_model_answers_from_the_command_line(run):
    prompts = ["tell me about the fox .", "what do you see ?"]
    printed = script("sample.py", run[0], "--stage=ppo_ptx", *(f"--prompt={prompt}" for prompt in prompts))
    blocks = printed.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == prompts
    assert all("\n  -> " in block for block in blocks)
    lines = "\n\n".join(prompts) + "\n"
    assert script("sample.py", run[0], "--stage=ppo_ptx", stdin=lines) == printed


def test_over_optimization_is_measured(run):
    workdir = run[0]
    printed = scripts.run(
        "overoptimization.py", f"--config={ROOT / RECIPE}", f"--workdir={workdir}", "--samples=8", "--prompts=8"
    )
    results = json.loads((workdir / "overoptimization.json").read_text())
    rows = results["curves"]["best of n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8]
    for before, after in itertools.pairwise(rows):
        assert after["kl"] > before["kl"] and after["proxy"]["mean"] >= before["proxy"]["mean"]
    assert all(0 <= row["gold"]["mean"] <= 1 and row["gold"]["n"] == 8 for row in rows)
    evaluated = [line for line in metrics_file.read(workdir / "ppo" / "metrics.jsonl") if "true_quality" in line]
    found = [(row["step"], row["gold"]["mean"]) for row in results["curves"]["ppo"]]
    assert found == [(line["step"], line["true_quality"]) for line in evaluated]
    assert printed.count("R^2") == sum(fit is not None for fit in results["fits"].values()) > 0
