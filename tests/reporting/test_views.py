"""The views of the notebooks show the content of a run's folder."""

import json

import pytest

from instructjax.reporting import views


def estimate(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 9}


@pytest.fixture
def folder(tmp_path):
    """Writes a run of two stages with three answered prompts."""
    run = tmp_path / "mine"
    for stage in ("pretrain", "ppo_ptx"):
        (run / stage).mkdir(parents=True)
        lines = [{"step": i, "validation_kl": float(i * i), "validation_reward": i / 2} for i in range(4)]
        (run / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {
        "wall_seconds": {"pretrain": 12.0, "ppo_ptx": 7.0, "total": 19.0},
        "models": {"sft": {"win_rate_vs_sft": {"heldout": estimate(0.5)}}},
    }
    (run / "results.json").write_text(json.dumps(results))
    (run / "evaluate").mkdir()
    rows = [{"prompt": f"prompt {i}", "sft": f"answer {i}"} for i in range(3)]
    (run / "evaluate" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_saved_run_is_the_run_with_fewer_answers(folder, tmp_path):
    whole = views.load(folder)
    (tmp_path / "saved" / "mine").mkdir(parents=True)  # is replaced
    views.save(folder, tmp_path / "saved" / "mine", prompts=2)
    (saved,) = views.load_all(tmp_path / "saved")
    assert (saved.name, saved.results, saved.metrics) == (whole.name, whole.results, whole.metrics)
    assert saved.answers == whole.answers[:2]


def test_texts_show_the_measurements(folder):
    run = views.load(folder)
    assert views.format_answers(run, count=9).split("\n\n")[2] == "prompt 2\n  SFT            'answer 2'"
    assert len(views.format_answers(run, count=2).split("\n\n")) == 2
    assert views.format_stages(run).splitlines()[1].split() == ["pretrain", "3", "12"]
    assert views.format_seeds([run, run]).splitlines()[1].split() == ["SFT", *["0.500", "±", "0.020"] * 2]


def test_overoptimization_is_drawn_over_the_square_root_of_the_kl(folder):
    (axes,) = views.overoptimization([views.load(folder)]).axes
    (line,) = [line for line in axes.lines if len(line.get_xdata())]
    assert line.get_xydata().tolist() == [[0, 0], [1, 0.5], [2, 1], [3, 1.5]]


def test_calibration_is_drawn_point_by_point():
    bins = [{"predicted": 0.6, "right": 0.55}, {"predicted": 0.9, "right": 0.8}]
    (axes,) = views.calibration({"single": bins}).axes
    assert axes.lines[0].get_xydata().tolist() == [[0.6, 0.55], [0.9, 0.8]]


def test_the_arrows_of_gradients_are_inside_the_figure():
    (axes,) = views.answer_gradients([0.5, -0.2, 0.9], [-0.25, 0.2, 0.05], [3, 1, 2]).axes
    low, high = axes.get_ylim()
    assert low < -1.0 and high > 1.5
