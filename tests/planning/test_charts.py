"""Charts of plans show every compiled program and every stage."""

import json

import pytest

from instructjax.errors import RecordError
from instructjax.planning import charts

GIB = 2**30
PROGRAM = {
    "name": "sft",
    "residents": {"weights": 2 * GIB, "optimizer": 4 * GIB, "batch": GIB},
    "compiled": {"peak": 10 * GIB, "available": 15 * GIB},
}
LINES = [
    {"recipe": "configs/instructgpt.py:1p3b", "topology": "v5e:4x4"},
    {"program": PROGRAM},
    {"program": {**PROGRAM, "name": "reward", "compiled": None}},  # not sharded over the mesh: nothing to draw
    {"stage": {"name": "sft", "days": 5.0, "paper": 4.9}},
    {"stage": {"name": "ppo", "days": 2.0, "paper": None}},
]


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return charts.load(path)


def test_the_parts_of_a_bar_add_up_to_the_peak(plan):
    (axes,) = charts.memory([plan]).axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [2, 4, 1, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1p3b on v5e:4x4\nsft"]


def test_the_papers_figures_are_drawn_next_to_its_stages(plan):
    (axes,) = charts.compute(plan).axes
    assert [patch.get_width() for patch in axes.patches] == [5.0, 2.0, 4.9]


def test_bars_of_two_plans_of_one_title_have_names_of_their_own(plan):
    (axes,) = charts.memory([plan, {**plan}]).axes
    assert [label.get_text()[-4:] for label in axes.get_yticklabels()] == [" (a)", " (b)"]


def test_no_labels_overlap(plan):
    stages = [{"name": f"stage_{i}", "days": 10.0**i, "paper": 10.0**i} for i in range(-3, 4)]
    for figure in (charts.memory([plan] * 8), charts.compute({**plan, "stages": stages})):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        boxes = [label.get_window_extent() for label in (*axes.get_yticklabels(), *axes.texts)]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
        assert not pairs
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"recipe": "a"}\n'])
def test_a_file_that_is_not_a_plan_is_rejected(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(RecordError, match="a.jsonl: expected a plan written by experiments/plan.py --json, found "):
        charts.load(tmp_path / "a.jsonl")
