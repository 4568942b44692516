"""Curves show exactly the numbers of the metrics."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.reporting import curves

PRETRAIN = [{"step": 0, "text_loss": 7.0}, {"step": 20, "loss": 5.0}, {"step": 40, "loss": 4.0, "text_loss": 4.5}]
OTHER = [{"step": 0, "text_loss": 6.0}, {"step": 20, "loss": 4.0}, {"step": 40, "loss": 3.5, "text_loss": 4.0}]
PPO = [{"step": i, "reward": i / 2, "kl": i / 5, "clip_fraction": 0.1} for i in range(1, 5)]


def drawn(figure):
    """Returns {title: {legend entry: points}} of a figure."""
    return {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figure.axes
    }


def test_a_run_is_drawn_point_by_point():
    assert drawn(curves.draw({"pretrain": PRETRAIN})) == {
        "loss": {"training": [[20, 5], [40, 4]], "held-out text": [[0, 7], [40, 4.5]]}
    }
    assert set(drawn(curves.draw({"ppo": PPO}))) == {
        "reward (RM), rollouts",
        "KL to initial policy (nats), rollouts",
        "share of clipped tokens, policy",
    }


def test_several_runs_share_a_panel():
    found = drawn(curves.draw({"a": PRETRAIN, "b": OTHER}))["loss"]
    assert found["a, training"] == [[20, 5], [40, 4]]
    assert found["b, held-out text"] == [[0, 6], [40, 4]]
    assert len(found) == 4


def test_seeds_are_drawn_as_a_mean_within_a_band():
    steps, mean, low, high = curves.mean_and_range([PRETRAIN, OTHER], "text_loss")
    assert steps.tolist() == [0, 40]
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([6.5, 4.25], [6, 4], [7, 4.5])
    figure = curves.draw_groups({"both": [PRETRAIN, OTHER]})
    assert drawn(figure)["loss"] == {"training": [[20, 4.5], [40, 3.75]], "held-out text": [[0, 6.5], [40, 4.25]]}
    assert len(figure.axes[0].collections) == 2


def test_groups_are_bands_of_their_own_color():
    figure = curves.draw_groups({"a": [PRETRAIN, OTHER], "b": [PRETRAIN]})
    assert drawn(figure)["loss"]["a, training"] == [[20, 4.5], [40, 3.75]]
    assert drawn(figure)["loss"]["b, training"] == [[20, 5], [40, 4]]
    assert len(figure.axes[0].collections) == 2  # a group of one run has no band
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2


def test_only_losses_that_are_flat_on_linear_axes_have_logarithmic_ones():
    falling = [{"step": 20 * i, "loss": 1 + 6 / (1 + i), "kl": 1 - 1 / (1 + i)} for i in range(1, 40)]
    steady = [{"step": 20 * i, "loss": 7 - i / 10} for i in range(40)]
    noisy = [{"step": 20 * i, "loss": 3 + 0.01 * (i % 2)} for i in range(40)]
    loss, kl = curves.draw({"a": falling}).axes
    assert (loss.get_xscale(), loss.get_yscale(), kl.get_xscale()) == ("symlog", "log", "linear")
    for lines in (steady, noisy, falling[:3], [{"step": i, "loss": float("nan")} for i in range(9)]):
        assert curves.draw({"a": lines}).axes[0].get_xscale() == "linear"


def test_pairs_have_the_line_of_chance():
    (axes,) = curves.draw({"reward": [{"step": 1, "validation_accuracy": 0.6}]}).axes
    assert {"chance"} < {line.get_label() for line in axes.lines}


@pytest.mark.parametrize("runs", [{"a": PRETRAIN}, {"a": PPO, "b": PPO}])
def test_legends_are_off_the_curves(runs):
    figure = curves.draw(runs)
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert legends
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for legend in legends for axes in figure.axes)


def test_a_step_that_a_seed_lacks_is_left_out():
    steps, *_ = curves.mean_and_range([PRETRAIN, OTHER[:2]], "text_loss")
    assert steps.tolist() == [0]
    assert not len(curves.mean_and_range([PRETRAIN, PPO], "loss")[0])


def test_a_stage_is_drawn_into_its_folder(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in PPO))
    curves.redraw(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 40))
def test_a_sparkline_reaches_its_minimum_and_maximum(values, width):
    line = curves.sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert "▁" in line
    if len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_a_sparkline_of_no_finite_value_is_empty(values):
    assert curves.sparkline(values) == ""
