"""Figures of several recipes show each group's mean over seeds, and the paper's stated numbers next to them."""

import pytest
from matplotlib.container import ErrorbarContainer

from instructjax.reporting import group_figures, paper_figures, run_groups
from tests.reporting.run_folders import RECIPE, changed, results, write_run

FIGURES = (
    group_figures.win_rates,
    group_figures.reward_accuracy,
    group_figures.pretrain_loss,
    paper_figures.figure_1,
    paper_figures.figure_3,
    paper_figures.figure_4,
    paper_figures.figure_5,
)


@pytest.fixture
def groups(tmp_path):
    """Two seeds of one recipe, a run of another, and a partial run on files."""
    write_run(tmp_path / "a", found=results(0, quality=0.7))
    write_run(tmp_path / "b", recipe=changed(RECIPE, seed=1), found=results(1, quality=0.8))
    write_run(tmp_path / "c", recipe=changed(RECIPE, ppo={"kl_coefficient": 0.02}), found=results(0, quality=0.6))
    write_run(tmp_path / "own", recipe={"seed": 0, "files": {"text": "a.jsonl"}})
    return run_groups.load_groups(tmp_path)


def heights(axes):
    """Returns the heights of the marks of estimates."""
    marks = [found[0] for found in axes.containers if isinstance(found, ErrorbarContainer)]
    return sorted(round(float(mark.get_ydata()[0]), 3) for mark in marks)


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def texts(figure):
    return " ".join([text.get_text() for text in figure.texts] + [figure.get_supxlabel()]).replace("\n", " ")


def test_seeds_are_pooled_and_a_single_run_keeps_its_interval(groups):
    pair, single, own = groups
    win_rate = ("models", "ppo_ptx", "win_rate_vs_sft", "heldout")
    assert group_figures.pooled(pair.runs, *win_rate) == {"mean": 0.75, "low": 0.7, "high": 0.8}
    assert group_figures.pooled(single.runs, *win_rate) == {"mean": 0.6, "low": 0.58, "high": 0.62, "n": 9}
    assert group_figures.pooled(own.runs, *win_rate) is None


def test_recipes_are_compared_in_one_figure_with_chance_and_those_without_win_rates_named(groups):
    figure = group_figures.win_rates(groups)
    (axes,) = figure.axes
    assert heights(axes) == [0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.75, 0.75]
    assert "sandbox, 2 seeds" in legend(figure) and "chance" in legend(figure)
    assert any(list(line.get_ydata()) == [0.5, 0.5] for line in axes.lines)
    assert "Without win rates: own." in texts(figure)


def test_the_reward_model_is_drawn_next_to_labelers_and_the_papers_numbers(groups):
    figure = group_figures.reward_accuracy(groups)
    (axes,) = figure.axes
    paper = [0.724, 0.696, 0.726, 0.773]  # sections 3.4 and 4.1
    assert heights(axes) == sorted([0.7] * 4 + [0.75] * 4 + paper)
    assert axes.get_xticklabels()[-1].get_text() == "the paper"
    assert any(list(line.get_ydata()) == [0.5, 0.5] for line in axes.lines)


def test_losses_are_means(groups):
    (axes,) = group_figures.pretrain_loss(groups).axes
    assert sorted(round(bar.get_height(), 3) for bar in axes.patches) == [1.0, 1.0, 1.2, 1.5]


def test_figure_1_has_the_papers_stated_preferences_next_to_ours(groups):
    left, right = paper_figures.figure_1(groups).axes
    assert heights(left) == [0.71, 0.734, 0.85]
    assert heights(right) == [0.5, 0.5, 0.6, 0.75]
    assert "text" in left.get_title() and "Figure 1" in right.get_title()


def test_figure_3_has_a_panel_for_each_group_of_labelers(groups):
    assert [heights(axes) for axes in paper_figures.figure_3(groups).axes] == [[0.5, 0.5, 0.6, 0.75]] * 2


def test_figure_4_shows_good_shares_as_the_paper_does(groups):
    panels = paper_figures.figure_4(groups).axes
    assert [{round(bar.get_height(), 3) for bar in axes.patches} for axes in panels] == [{0.8}, {0.4}, {0.3}, {0.9}]
    assert [line.get_ydata().tolist() for line in panels[2].lines] == [
        [0.21]
    ]  # the paper's GPT is not drawn: no run has GPT


def test_figure_5_has_likert_scores_next_to_stated_win_rates(groups):
    left, right = paper_figures.figure_5(groups).axes
    assert heights(left) == [0.268, 0.298, 0.734]
    assert sorted(round(bar.get_height(), 2) for bar in right.patches) == [4.0, 4.0, 4.6, 5.5]


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_without_measures_the_figure_says_so(groups, draw):
    figure = draw(groups[2:])
    assert not figure.axes
    assert "no run has" in texts(figure).lower()


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_legends_are_off_the_curves_and_nothing_is_clipped(groups, draw):
    figure = draw(groups)
    figure.draw_without_rendering()
    for found in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        assert not any(found.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
