"""The views of the notebooks show the content of runs' folders."""

import json

import pytest

from instructjax.reporting import run_groups, views
from tests.reporting.run_folders import RECIPE, changed, results, write_run

PPO = [{"step": i, "validation_kl": float(i * i), "validation_reward": i / 2} for i in range(4)]
CURVES = [{"step": 20, "loss": 4.0}, {"step": 40, "loss": 3.0}]
REWARD = [{"step": 0, "validation_accuracy": 0.5}, {"step": 40, "validation_accuracy": 0.7}]


@pytest.fixture
def run(tmp_path):
    """A run of two stages with three answered prompts."""
    folder = write_run(tmp_path / "mine", stages=("pretrain", "ppo_ptx"), found=results(), lines=PPO)
    (folder / "evaluate").mkdir()
    rows = [{"prompt": f"prompt {i}", "sft": f"answer {i}"} for i in range(3)]
    (folder / "evaluate" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_groups.load(folder)


def lines(axes):
    """Returns {label: points} of the curves and lines of a panel."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())}


def test_texts_show_the_measurements(run):
    assert views.format_answers(run, count=9).split("\n\n")[2] == "prompt 2\n  SFT            'answer 2'"
    assert len(views.format_answers(run, count=2).split("\n\n")) == 2
    assert views.format_stages(run).splitlines()[1].split() == ["pretrain", "3", "12"]
    assert views.format_stages(run).splitlines()[-1].split() == ["total", "19"]
    table = views.format_seeds([run_groups.Group("two", [run, run])])
    assert table.splitlines()[2].split() == ["SFT", *["0.500", "±", "0.020"] * 2]
    assert views.format_ppo(run_groups.group([run])).splitlines()[1].split() == ["ppo_ptx", "mine", "3", "1.500"]


def test_texts_of_a_partial_run_say_what_it_lacks(tmp_path):
    partial = run_groups.load(write_run(tmp_path / "partial", finished=False))
    groups = run_groups.group([partial])
    assert views.format_answers(partial) == "partial has no answers: it was not evaluated."
    assert views.format_stages(partial).splitlines()[2].split() == ["sft", "40", "0", "unfinished"]
    assert views.format_seeds(groups) == "sandbox: no win rates"
    assert views.format_selection(groups).splitlines()[1].split() == ["partial", "not", "evaluated"]
    assert views.format_human(partial) == "partial has no measures on human data."


def test_a_stage_is_the_mean_over_finished_seeds_and_unfinished_ones_are_thin(tmp_path):
    double = [{**line, "loss": 2 * line["loss"]} for line in CURVES]
    write_run(tmp_path / "a", stages=("pretrain",), lines=CURVES)
    write_run(tmp_path / "b", stages=("pretrain",), lines=double, recipe=changed(RECIPE, seed=1))
    write_run(tmp_path / "c", stages=("pretrain",), lines=CURVES[:1], recipe=changed(RECIPE, seed=2), finished=False)
    write_run(tmp_path / "d", stages=("sft",), recipe=changed(RECIPE, seed=3))
    figure = views.stage(run_groups.load_groups(tmp_path), "pretrain")
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[6.0, 4.5], [4.0]]
    mean, unfinished = axes.lines
    assert unfinished.get_linewidth() < mean.get_linewidth()
    assert "Without the stage pretrain: d." in figure.get_supxlabel().replace("\n", " ")


def test_recipes_share_the_panels_of_a_stage(tmp_path):
    write_run(tmp_path / "a", stages=("pretrain",), lines=CURVES)
    write_run(tmp_path / "b", stages=("pretrain",), lines=CURVES, recipe=changed(RECIPE, pretrain={"steps": 9}))
    figure = views.stage(run_groups.load_groups(tmp_path), "pretrain")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["sandbox", "sandbox (pretrain.steps=9)"]
    assert list(lines(figure.axes[0])) == labels


def test_the_reward_model_has_lines_for_chance_and_for_how_often_labelers_agree(tmp_path):
    write_run(tmp_path / "a", stages=("reward",), found=results(), lines=REWARD)
    (axes,) = views.stage(run_groups.load_groups(tmp_path), "reward").axes
    heights = {label: {y for _, y in points} for label, points in lines(axes).items()}
    assert heights["chance"] == {0.5} and heights["two labelers agree"] == {0.75}


def test_a_stage_that_no_run_has_is_named(run):
    figure = views.stage(run_groups.group([run]), "reward")
    assert [text.get_text() for text in figure.texts] == ["No run has begun the stage reward."]


def test_overoptimization_is_drawn_over_the_square_root_of_the_kl(run):
    (axes,) = views.overoptimization(run_groups.group([run])).axes
    assert list(lines(axes).values()) == [[[0, 0], [1, 0.5], [2, 1], [3, 1.5]]]
    assert not views.overoptimization([]).axes


def test_calibration_is_drawn_point_by_point():
    bins = [{"predicted": 0.6, "right": 0.55}, {"predicted": 0.9, "right": 0.8}]
    (axes,) = views.calibration({"single": bins}).axes
    assert axes.lines[0].get_xydata().tolist() == [[0.6, 0.55], [0.9, 0.8]]


def test_the_calibration_of_the_first_run_that_measured_it_is_drawn(run):
    bins = [{"predicted": 0.6, "right": 0.55}]
    measured = run_groups.Run("other", {"config": "x", "human": {"calibration": {"single": bins}}}, {})
    figure = views.reward_calibration(run_groups.group([run, measured]))
    assert figure.get_supxlabel() == "Run other."
    assert not views.reward_calibration(run_groups.group([run])).axes


def test_the_arrows_of_gradients_are_inside_the_figure():
    (axes,) = views.answer_gradients([0.5, -0.2, 0.9], [-0.25, 0.2, 0.05], [3, 1, 2]).axes
    low, high = axes.get_ylim()
    assert low < -1.0 and high > 1.5
